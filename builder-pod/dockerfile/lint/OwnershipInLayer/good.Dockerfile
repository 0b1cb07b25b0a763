# check=experimental=OwnershipInLayer
FROM alpine:3.20
COPY --chown=1000:1000 app /app
