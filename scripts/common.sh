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

# A home for a node, kept for the next time: target/NAME, or /tmp/hearth-NAME-UID where that does not do.
#
# It does not do where the socket's path would be too long: it has 107 bytes at most, and the node puts some 40 of its own
# behind its home. And not for root's machines: their monitors run as users of their own, who may not pass a closed
# directory above it, such as /root.
home_for() {
    local name=$1 home
    home=$(target_directory)/$name
    ((EUID != 0 && ${#home} <= 60)) || home=/tmp/hearth-$name-$EUID
    mkdir -p --mode=711 "$home"
    # Anybody may write to /tmp, so somebody else may have been there first.
    [[ -O $home && ! -L $home ]] || fail "$home belongs to somebody else: please remove it"
    printf '%s\n' "$home"
}

# Seconds with one decimal since a time that `now` gave.
since() {
    awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f s", b - a }'
}

now() {
    date +%s.%N
}
