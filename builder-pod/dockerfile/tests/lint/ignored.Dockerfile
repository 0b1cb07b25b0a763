FROM alpine:3.20 AS base
FROM alpine:3.20
COPY build.log ./a.log /sub/b.log /x/
COPY node_modules/x . / /x/
ADD secret /x/
ADD https://example.com/a.log /x/
COPY --from=base a.log /x/
COPY *.log /x/
