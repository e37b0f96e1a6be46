#!/usr/bin/env bash
# Runs the end-to-end tests as an ordinary user, whatever user calls it. Root becomes user HEARTH_TEST_UID (64100), who needs no
# entry in /etc/passwd. Arguments go to the tests: `scripts/test-user.sh lifecycle`.
set -euo pipefail
cd "$(dirname "$0")/.."

# All of the workspace, as `make test` builds it.
cargo xtask guest
cargo xtask bare-guest
threads=(--test-threads "$(($(nproc) + 1))")
if [ "$(id -u)" != 0 ]; then
    exec cargo test --workspace --locked --test all -- "${threads[@]}" "$@"
fi
built=$(cargo test --workspace --locked --no-run 2>&1) || { printf '%s\n' "$built" >&2; exit 1; }

uid=${HEARTH_TEST_UID:-64100}
target=${CARGO_TARGET_DIR:-target}
tests=$(sed -n 's/^ *Executable tests\/all\/.*(\(.*\))$/\1/p' <<<"$built")
[ -x "$tests" ] || { echo "the tests are not built" >&2; exit 1; }

# The tests find `hearth` above themselves, and keep what they make beside it: all of that in a place of the user's own.
place=$(mktemp -d /tmp/hearth-as-user-XXXXXX)
trap 'rm -rf "$place"' EXIT
mkdir -p "$place/debug/deps" "$place/e2e" "$place/tmp" "$place/home"
cp "$target/debug/hearth" "$target/debug/hearth-guest" "$place/debug/"
cp "$tests" "$place/debug/deps/all"
# The kernel of an earlier run of the tests spares a download.
[ ! -d "$target/e2e/artefacts" ] || cp -r "$target/e2e/artefacts" "$place/e2e/"
# Firecracker and its test guest, too, where they are.
bare=bare-guest/x86_64-unknown-none/release
[ ! -d "$target/firecracker" ] || cp -r "$target/firecracker" "$place/"
[ ! -f "$target/$bare/bare-guest" ] || { mkdir -p "$place/$bare" && cp "$target/$bare/bare-guest" "$place/$bare/"; }
chown -R "$uid:$uid" "$place"
chmod 711 "$place" "$place/tmp"

cd "$place"
# Where a device is root's alone, the user has one of its own in its place, in a mount namespace that ends with the tests.
mkdir -p "$place/dev/net"
for device in kvm net/tun; do
    [ -c "/dev/$device" ] || continue
    mknod "$place/dev/$device" c "0x$(stat -c %t "/dev/$device")" "0x$(stat -c %T "/dev/$device")"
    chown "$uid:$uid" "$place/dev/$device"
    chmod 600 "$place/dev/$device"
done
# shellcheck disable=SC2016  # it is for the shell within
cover='for device in kvm net/tun; do
    [ ! -e "$0/$device" ] || mount --bind "$0/$device" "/dev/$device" || exit
done
exec "$@"'
unshare --mount sh -c "$cover" "$place/dev" setpriv --reuid "$uid" --regid "$uid" --clear-groups \
    env --default-signal=INT,QUIT -u XDG_RUNTIME_DIR -u XDG_DATA_HOME \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME="$place/home" TMPDIR="$place/tmp" HEARTH_E2E_BINARY="$place/debug/hearth" \
    "$place/debug/deps/all" "${threads[@]}" "$@"
