# check=skip=JSONArgsRecommended
FROM alpine:3.20
ENTRYPOINT server --port 80
CMD ["--verbose"]
