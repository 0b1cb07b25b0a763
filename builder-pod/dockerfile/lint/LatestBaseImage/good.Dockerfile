# check=experimental=LatestBaseImage
FROM alpine:3.20
