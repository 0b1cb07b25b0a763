FROM scratch
COPY build.txt /
