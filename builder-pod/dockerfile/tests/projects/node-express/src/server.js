const http = require('http');
const cookie = require('cookie');

http.createServer((request, response) => {
  const jar = cookie.parse(request.headers.cookie || '');
  response.end(JSON.stringify({ path: request.url, jar }));
}).listen(process.env.PORT || 3000);
