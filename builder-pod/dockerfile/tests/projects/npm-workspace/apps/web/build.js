const fs = require('fs');
const ms = require('ms');
fs.mkdirSync('dist', { recursive: true });
fs.writeFileSync('dist/index.html', `<p>${ms(ms('2 days'))}</p>\n`);
