# shellcheck shell=bash
# Sourced by the other scripts: where the repository is, how a step is announced, where cargo is.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# rustup puts cargo there; a shell that was open before does not know it yet.
if [[ -d ${CARGO_HOME:-${HOME:-/root}/.cargo}/bin ]]; then
    PATH="${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:$PATH"
fi
export PATH

step() {
    printf '\n==> %s\n' "$*"
}

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

target_directory() {
    printf '%s\n' "${CARGO_TARGET_DIR:-$root/target}"
}

# Seconds with one decimal since a time that `now` gave.
since() {
    awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f s", b - a }'
}

now() {
    date +%s.%N
}
