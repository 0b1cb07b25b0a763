FROM alpine:3.20
RUN --mount=type=secret,id=api-token fetch --token-file /run/secrets/api-token
