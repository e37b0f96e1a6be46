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

# Tests run real machines on hosts that may be busy: what fails is run again, alone, twice at most. What passes then is called flaky, by
# name, with the first failure above it; what fails each time fails. Arguments: what to test.
tests() {
    local first=$log.first name
    local -a failed shown=()
    case $1 in
        # Unit tests say what they skip in what they print.
        --lib) shown=(-- --show-output) ;;
        # End-to-end tests wait half of their time; how many nodes run at once is theirs to say.
        *) shown=(-- --test-threads "$(($(nproc) + 1))") ;;
    esac
    logged cargo test --workspace --quiet --locked --no-fail-fast "$@" "${shown[@]}" 2>&1 | tee "$first" && return
    mapfile -t failed < <(sed -n '/^failures:$/,/^test result:/s/^    \([a-z0-9_:]*\)$/\1/p' "$first" | sort -u)
    [[ ${#failed[@]} -gt 0 && ${#failed[@]} -le 3 ]] || return 1
    # A unit test that failed may have left its monitor, which takes a processor from all that follows.
    pkill -KILL -f 'qemu-system-x86_64 .*/tmp/\.tmp' || true
    for name in "${failed[@]}"; do
        step "Once more: $name"
        logged cargo test --workspace --quiet --locked "$@" -- --exact "$name" ||
            logged cargo test --workspace --quiet --locked "$@" -- --exact "$name" || return 1
        printf 'FLAKY %s: it failed and passed alone\n' "$name" | tee -a "$log"
    done
}

# Prints the path of a Linux kernel that the driver's tests boot. `hearth setup` fetches it the first time.
test_kernel() {
    local home hearth
    home=$(home_for test) || return
    hearth=$(target_directory)/debug/hearth
    (
        export HEARTH_HOME=$home
        unset HEARTH_SOCKET
        "$hearth" setup --json >/dev/null && "$hearth" setup --list --json |
            sed -n '/"kind": "kernel"/,/}/s/.*"path": "\(.*\)".*/\1/p'
        "$hearth" node stop >/dev/null
    )
}

timed cargo fmt --all --check
timed cargo xtask tidy
timed cargo clippy --quiet --workspace --all-targets --locked -- -D warnings
timed cargo xtask guest
# All of the workspace each time, so that one set of features is built, and once; the programs are built with their tests.
timed cargo test --workspace --locked --quiet --no-run
timed cargo xtask bare-guest --lint

step "A kernel for the driver's tests"
HEARTH_TEST_KERNEL=$(test_kernel) || true
if [[ -f $HEARTH_TEST_KERNEL ]]; then
    export HEARTH_TEST_KERNEL
    printf '%s\n' "$HEARTH_TEST_KERNEL"
else
    unset HEARTH_TEST_KERNEL
    printf 'none: the test that boots it says that it is skipped\n'
fi

timed tests --lib --bins --test real --test pager
timed tests --test all

flaky=$(grep -acE '^FLAKY ' "$log" || true)
skipped=$(grep -acE '^SKIPPED ' "$log" || true)
step "All tests passed in $(since "$started"); $skipped skipped, $flaky flaky"
grep -aE '^(SKIPPED|FLAKY) ' "$log" | sort | uniq || true
