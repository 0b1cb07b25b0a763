# `make` lists the targets. The work is done by cargo, and where it takes more than a line, by `cargo xtask`.

export LAPSTRAKE_CACHE ?= /var/cache/lapstrake
# `own` brings up a cluster of our own; `current` uses the one of the kubeconfig.
export CLUSTER ?= own

CARGO_TEST = cargo test --locked --no-fail-fast
WORKSPACE = --workspace --exclude lapstrake-e2e

.DEFAULT_GOAL := help
.PHONY: help check fmt deny unit integration e2e test generate images cluster-up cluster-down demo demo-down bench fuzz

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | expand -t 16

check: ## formatting, lints, generated files, rules of the house, licences
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --quiet -- -D warnings
	cargo xtask generate --check
	cargo xtask tidy
	cargo xtask deny

fmt: ## format the code
	cargo fmt --all

generate: ## write what is generated: CRDs, their reference, the chart's table
	cargo xtask generate

unit: ## tests beside the code
	$(CARGO_TEST) $(WORKSPACE) --lib --bins
	cd e2e/cluster && go vet ./... && go test ./internal/... .
	cd e2e/conformance && go vet ./... && go test ./...

integration: ## tests of whole crates: real steps, real registries (as root)
	@.ci/need
	cargo xtask integration

e2e: ## tests on a real Kubernetes node; CLUSTER=current uses the kubeconfig's cluster
	@.ci/need
	cargo xtask install
	$(if $(filter own,$(CLUSTER)),cd e2e/cluster && LAPSTRAKE_REQUIRE=node go test -count=1 ./smoke)
	cargo xtask e2e

test: ## all tests, and how long each phase took
	@.ci/need
	cargo xtask test

images: ## the operator's and the builder's images, built by Lapstrake, pushed to the cluster's registry
	@.ci/need
	cargo xtask images

cluster-up: ## bring up a one-node Kubernetes with registries and base images
	@.ci/need
	cargo xtask cluster-up

cluster-down: ## take the cluster away, with all its traces
	cargo xtask cluster down

demo: ## see it work: a cluster, the chart, a build, the image run as a pod
	@.ci/need
	cargo xtask demo

demo-down: ## leave nothing of the demo behind
	cargo xtask demo down

bench: ## measure what docs/benchmarks.md reports
	@.ci/need
	cargo xtask bench

fuzz: ## fuzz the Dockerfile frontend, S seconds for each of T="parse expand ignore lower"
	@for target in $(or $(T),parse expand ignore lower); do fuzz/run $$target $(or $(S),60) || exit 1; done
