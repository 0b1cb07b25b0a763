FROM scratch
COPY build.log /
