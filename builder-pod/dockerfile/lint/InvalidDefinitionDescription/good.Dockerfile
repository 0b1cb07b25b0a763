# check=experimental=InvalidDefinitionDescription

# VERSION of the base to take
ARG VERSION=3.20
FROM alpine:${VERSION}
