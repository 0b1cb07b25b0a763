FROM alpine:3.20 AS one
CMD a
CMD ["b"]
ENTRYPOINT a \
  b
# check=skip=JSONArgsRecommended
ENTRYPOINT c
HEALTHCHECK NONE
HEALTHCHECK CMD x
SHELL ["/bin/sh", "-c"]
CMD d
FROM one
CMD ["x"]
WORKDIR a
WORKDIR /b
WORKDIR c
FROM rich
CMD text
EXPOSE 80/Tcp 1.2.3.4:80:90/UDP 8080:80 53/udp
MAINTAINER me
RUN a \

  b \

  c
ENV a b
LABEL c d
ARG PASSWORD=x my_token PUBLIC_KEY tokens
ENV API_KEY=1 KEY_FILE=/x
ONBUILD ENV x y
