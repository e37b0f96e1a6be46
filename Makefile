# On a fresh Debian 12 machine, as root: `make demo`. The other targets are for working on Hearth.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-user test-metal build release install setup-host fmt lint tidy soak fuzz clean

PREFIX ?= /usr/local
SECONDS_EACH ?= 600

export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)

help: ## Tells what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

demo: setup-host release ## Installs what is missing, builds, and runs a microVM
	@scripts/demo.sh

test: ## Installs what is missing; formatting, lints, structure, unit and end-to-end tests
	@scripts/prerequisites.sh test
	@scripts/test.sh

test-user: ## The end-to-end tests as an ordinary user, also when root calls
	@scripts/prerequisites.sh test
	@scripts/test-user.sh

build: ## Builds hearth and its guest agent, quickly, into target/debug
	@scripts/prerequisites.sh build
	@cargo xtask build

release: ## Builds hearth and its guest agent, optimised, into target/release
	@scripts/prerequisites.sh build
	@cargo xtask build --release

install: release ## Puts hearth and its guest agent into $(PREFIX)/bin
	@target=$${CARGO_TARGET_DIR:-target}; \
	install -D --mode=755 --target-directory=$(DESTDIR)$(PREFIX)/bin $$target/release/hearth $$target/release/hearth-guest

setup-host: ## Installs the packages that machines and images need
	@scripts/prerequisites.sh run

fmt: ## Formats the code
	@cargo fmt --all
	@cd crates/bare-guest && cargo fmt

lint: ## Lints as errors, and the structure checks
	@cargo clippy --workspace --all-targets -- -D warnings
	@cargo xtask bare-guest --lint
	@cargo xtask tidy

tidy: ## The structure checks alone
	@cargo xtask tidy

test-metal: ## The driver suite, every pair of it: for a machine whose KVM is native; fails where anything is skipped
	@scripts/prerequisites.sh test
	@cargo xtask guest
	@cargo xtask bare-guest
	@HEARTH_E2E_METAL=1 cargo test --workspace --locked --test all -- --nocapture firecracker

soak: ## The long end-to-end tests: boots, restores, clones and forks by the hundred, 200 deaths of the node, 200 of whoever takes part in a snapshot
	@scripts/prerequisites.sh test
	@cargo xtask guest
	@cargo xtask bare-guest
	@HEARTH_E2E_SOAK=1 cargo test --workspace --locked --test all -- --nocapture --test-threads 1 \
		boots_one_after_the_other restores_one_after_the_other clones_at_once_leave_nothing fifty_machines_leave_nothing many_networks chaos:: crash:: \
		a_connection_and_a_timer

fuzz: ## Every fuzz target, SECONDS_EACH (600) seconds each
	@for name in $$(cargo xtask fuzz); do cargo xtask fuzz "$$name" --seconds $(SECONDS_EACH); done

clean: ## Removes what was built, and what the demo and the tests fetched
	@cargo clean
	@rm -rf target /tmp/hearth-demo-$$(id -u) /tmp/hearth-test-$$(id -u)
