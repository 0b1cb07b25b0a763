#!/usr/bin/env bash
set -Eeo pipefail

main() {
	if [ "$1" = harbourd ] && [ "$(id -u)" = 0 ]; then
		mkdir -p "$HBDATA"
		chmod 00700 "$HBDATA" || :
	fi
	exec "$@"
}

main "$@"
