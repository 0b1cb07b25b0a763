FROM alpine AS one
FROM one
