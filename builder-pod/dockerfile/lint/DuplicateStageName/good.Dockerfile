FROM alpine:3.20 AS build
FROM debian:12 AS run
