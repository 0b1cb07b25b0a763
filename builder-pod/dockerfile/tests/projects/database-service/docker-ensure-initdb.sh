#!/usr/bin/env bash
set -Eeuo pipefail
test -s "$HBDATA/HB_VERSION"
