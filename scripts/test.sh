#!/usr/bin/env bash
# `make test`: formatting, lints, structure, unit tests, end-to-end tests. Ends with what was skipped, and why.

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

started=$(now)
log=$(target_directory)/test.log
mkdir -p "$(dirname "$log")"
: >"$log"
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never} RUST_BACKTRACE=${RUST_BACKTRACE:-0}

timed() {
    local start
    step "$*"
    start=$(now)
    "$@" </dev/null
    printf '(%s)\n' "$(since "$start")"
}

logged() {
    "$@" 2>&1 | tee -a "$log"
}

timed cargo fmt --all --check
timed cargo xtask tidy
timed cargo clippy --quiet --workspace --all-targets --locked -- -D warnings
timed cargo xtask build
timed logged cargo test --quiet --workspace --exclude e2e --locked -- --show-output
timed logged cargo test --quiet --package e2e --locked

skipped=$(grep -ciE '^ *skipped:? ' "$log" || true)
step "All tests passed in $(since "$started"); $skipped skipped"
grep -iE '^ *skipped:? ' "$log" | sort | uniq || true
