FROM alpine:3.20
RUN export MODE=fast
RUN make
