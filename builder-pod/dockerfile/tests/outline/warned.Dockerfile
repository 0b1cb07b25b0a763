FROM alpine AS Build
RUN one
ENV a b
RUN two

RUN three && \
  four
FROM alpine
MAINTAINER me
CMD x
