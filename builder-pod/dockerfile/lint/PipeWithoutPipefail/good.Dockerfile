# check=experimental=PipeWithoutPipefail
FROM alpine:3.20
RUN set -o pipefail && wget -O - https://example.com/x | sh
