# check=experimental=OwnershipInLayer
FROM alpine:3.20
COPY app /app
RUN chown -R 1000:1000 /app
