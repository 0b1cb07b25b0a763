# check=experimental=PipeWithoutPipefail
FROM alpine:3.20
RUN wget -O - https://example.com/x | sh
