# `make` lists the targets. The work is done by cargo, and where it takes more than a line, by `cargo xtask`.

export LAPSTRAKE_CACHE ?= /var/cache/lapstrake
# `own` brings up a cluster of our own; `current` uses the one of the kubeconfig.
export CLUSTER ?= own

CARGO_TEST = cargo test --locked --no-fail-fast
WORKSPACE = --workspace --exclude lapstrake-e2e

.DEFAULT_GOAL := help
.PHONY: help check fmt deny unit integration e2e test generate images cluster-up cluster-down demo demo-down bench tools

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | expand -t 16

tools:
	@command -v cargo >/dev/null || { echo "missing: cargo; install Rust from https://rustup.rs and put ~/.cargo/bin on the PATH"; exit 1; }
	@command -v cc >/dev/null || { echo "missing: gcc; apt-get install gcc libc6-dev"; exit 1; }

check: tools ## formatting, lints, generated files, rules of the house, licences
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --quiet -- -D warnings
	cargo xtask generate --check
	cargo xtask tidy
	cargo xtask deny

fmt: tools ## format the code
	cargo fmt --all

generate: tools ## write what is generated: CRDs, their reference, the chart's table
	cargo xtask generate

unit: tools ## tests beside the code
	$(CARGO_TEST) $(WORKSPACE) --lib --bins
	cd e2e/cluster && go vet ./... && go test ./internal/... .

integration: tools ## tests of whole crates: real steps, real registries (as root)
	cargo xtask need
	$(CARGO_TEST) $(WORKSPACE) --test '*'

e2e: tools ## tests on a real Kubernetes node; CLUSTER=current uses the kubeconfig's cluster
	cargo xtask need
	cargo xtask install
	LAPSTRAKE_INSTALLED=1 $(CARGO_TEST) --package lapstrake-e2e

test: tools ## all tests, and how long each phase took
	cargo xtask need
	cargo xtask test

images: tools ## the operator's and the builder's images, built by Lapstrake, pushed to the cluster's registry
	cargo xtask need
	cargo xtask images

cluster-up: tools ## bring up a one-node Kubernetes with registries and base images
	cargo xtask need
	cargo xtask cluster-up

cluster-down: tools ## take the cluster away, with all its traces
	cargo xtask cluster down

demo: tools ## see it work: a cluster, the chart, a build, the image run as a pod
	cargo xtask need
	cargo xtask demo

demo-down: tools ## leave nothing of the demo behind
	cargo xtask demo down

bench: tools ## measure what docs/benchmarks.md reports
	cargo xtask need
	cargo xtask bench
