# check=experimental=SudoInRun
FROM debian:12
USER root
RUN make install
