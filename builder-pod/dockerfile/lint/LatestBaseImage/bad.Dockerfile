# check=experimental=LatestBaseImage
FROM alpine
