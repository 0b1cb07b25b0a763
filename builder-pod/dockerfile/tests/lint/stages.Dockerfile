# syntax=docker/dockerfile:1
# check=experimental=all
# The tag
ARG TAG
ARG A B=2
from alpine$TAG as Build
run true
FROM --platform=linux/amd64 alpine:3 AS Build
# something
ARG X Y
FROM --platform=$TARGETPLATFORM alpine:3 AS context
FROM --platform=${BUILDPLATFORM} alpine:3 As linux-x
FROM --platform=linux/arm64 alpine:3 AS arm64
FROM --platform=$NOWHERE${BUILDPLATFORM} alpine$MISSING:3 AS x
# check=skip=StageNameCasing
FROM alpine:3 AS CamelCase
Run true
