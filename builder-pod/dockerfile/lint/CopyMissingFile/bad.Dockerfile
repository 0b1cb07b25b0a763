FROM alpine:3.20
COPY app.cnf /etc/
