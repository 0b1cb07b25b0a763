# check=experimental=UnpinnedBaseImage
FROM alpine:3.20
