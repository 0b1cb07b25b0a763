# check=experimental=UnusedStage
FROM alpine:3.20 AS build
RUN make
FROM alpine:3.20
COPY --from=build /app /
