FROM alpine:3.20
RUN echo one && \
    # then the other
    echo two
