FROM alpine:3.20
ENV MODE=fast
RUN make
