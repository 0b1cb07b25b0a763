# VERSION of the base image
ARG VERSION=3.20
# REGISTRY to take it from
ARG REGISTRY=docker.io
ARG IMAGE=${REGISTRY}/library/alpine:${VERSION}
ARG UNUSED=1

# base has the tools
FROM ${IMAGE} AS base
# MODE of the compiler
ARG MODE=fast
ARG VERSION
ARG TARGETARCH

# build compiles
#
# build once more
FROM --platform=$BUILDPLATFORM base AS build
ARG FLAGS
ARG MODE
RUN --mount=type=secret,id=token,required --mount=type=ssh make
RUN --mount=type=secret,id=token --mount=type=secret,target=/run/other,env=OTHER make
RUN --mount=type=secret,id=late,env=LATE --mount=type=ssh,id=deploy,required make

FROM base AS docs
ARG THEME=dark
RUN --mount=type=secret,id=docs make docs

# it is small
FROM scratch
ARG LABEL=x$MODE
COPY --from=build /app /
