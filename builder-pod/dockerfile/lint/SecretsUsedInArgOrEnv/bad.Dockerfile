FROM alpine:3.20
ARG API_TOKEN
RUN fetch --token "$API_TOKEN"
