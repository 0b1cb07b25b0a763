ARG VERSION=1.2
FROM alpine:3.20
ARG VERSION
RUN fetch https://example.com/app-$VERSION.tar
