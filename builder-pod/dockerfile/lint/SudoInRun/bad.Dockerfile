# check=experimental=SudoInRun
FROM debian:12
RUN sudo make install
