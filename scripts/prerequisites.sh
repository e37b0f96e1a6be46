#!/usr/bin/env bash
# Installs what is missing on a Debian or Ubuntu host: scripts/prerequisites.sh build|run|test
#
#   build  the Rust toolchain and a C compiler
#   run    what machines and images need
#   test   both, and what the end-to-end tests compare with

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

packages_build=(build-essential ca-certificates curl)
packages_run=(qemu-system-x86 e2fsprogs mmdebstrap busybox-static xz-utils)
packages_test=(skopeo umoci docker-registry)

installed() {
    [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

install_packages() {
    local missing=()
    for package in "$@"; do
        installed "$package" || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null ||
        fail "this script knows apt only; please install what matches: ${missing[*]}"
    local as_root=()
    if ((EUID != 0)); then
        command -v sudo >/dev/null ||
            fail "not root, and no sudo; please run as root: apt-get install ${missing[*]}"
        as_root=(sudo)
    fi
    step "Installing ${missing[*]}"
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0)
    # The package lists of a fresh machine are empty or too old: they are fetched only when the install needs it.
    "${apt[@]}" install --yes --no-install-recommends "${missing[@]}" </dev/null && return 0
    "${apt[@]}" update </dev/null
    "${apt[@]}" install --yes --no-install-recommends "${missing[@]}" </dev/null
}

# The oldest compiler that builds this workspace, as in 1.95.
oldest_rust() {
    sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml
}

rust_is_new_enough() {
    command -v cargo >/dev/null || return 1
    local present
    present=$(cargo --version | awk '{ print $2 }')
    [[ $(printf '%s\n%s\n' "$(oldest_rust)" "$present" | sort --version-sort | head -n1) == "$(oldest_rust)" ]]
}

install_rust() {
    if ! rust_is_new_enough; then
        step "Installing Rust (rustup, https://rustup.rs)"
        if command -v rustup >/dev/null; then
            rustup toolchain install "$(oldest_rust)" --profile minimal --component clippy,rustfmt
            rustup default "$(oldest_rust)"
        else
            curl --proto '=https' --tlsv1.2 --silent --show-error --fail https://sh.rustup.rs |
                sh -s -- -y --quiet --no-modify-path --default-toolchain "$(oldest_rust)" \
                    --profile minimal --component clippy,rustfmt
            PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
        fi
        rust_is_new_enough || fail "cargo is older than $(oldest_rust): please update it"
    fi
    # The guest agent is a static binary.
    local target=x86_64-unknown-linux-musl
    [[ -d $(rustc --print sysroot)/lib/rustlib/$target ]] && return 0
    command -v rustup >/dev/null ||
        fail "this Rust has no standard library for $target: please install it"
    rustup target add "$target"
}

case ${1:-} in
build)
    install_packages "${packages_build[@]}"
    install_rust
    ;;
run)
    install_packages "${packages_run[@]}"
    ;;
test)
    install_packages "${packages_build[@]}" "${packages_run[@]}" "${packages_test[@]}"
    install_rust
    ;;
*)
    fail "usage: $0 build|run|test"
    ;;
esac
