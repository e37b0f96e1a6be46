#!/usr/bin/env bash
# `make demo`: sets up a kernel and an image, runs a command in a microVM, tells how long each took.
#
# Everything lies in a home of its own; its node ends with the script. What was fetched stays there, so that the
# second time is quick; `make clean` removes it.

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

hearth=$(target_directory)/release/hearth
[[ -x $hearth ]] || fail "there is no $hearth: please run \`make release\`"

home=$(home_for demo)
export HEARTH_HOME=$home

stop_node() {
    "$hearth" node stop --stop-machines >/dev/null 2>&1 || true
}
trap stop_node EXIT

# Announces a command as a user would type it, runs it, and tells how long it took.
show() {
    local start
    printf '\n$ hearth %s\n' "$(printf '%q ' "$@")"
    start=$(now)
    "$hearth" "$@" </dev/null
    printf '(%s)\n' "$(since "$start")"
}

started=$(now)

step "A kernel, the guest agent and an initramfs"
show setup

step "What this host can do"
show doctor

step "An image: Debian's static busybox"
show image build busybox -t demo

step "A command in a machine of its own, with a kernel of its own"
printf 'this host runs Linux %s\n' "$(uname -r)"
show run --rm demo uname -a
# shellcheck disable=SC2016  # for the shell in the machine
show run --rm --memory 128m --hostname lighthouse demo \
    sh -c 'echo "I am PID $$ on $(hostname): $(nproc) CPU, $(free -m | awk "/^Mem/ { print \$2 }") MiB"; ps'

step "A machine that stays: commands run beside its workload"
show run --detach --name stays demo sleep 600
show ps
show exec stays ps
show rm --force stays

printf '\nDone in %s. Kernel, image and machines lie in %s, the binaries in %s.\n' \
    "$(since "$started")" "$home" "$(dirname "$hearth")"
# shellcheck disable=SC2016  # for the reader
printf '`make clean` removes both. Packages of the distribution, and Rust if it was missing, stay installed.\n'
printf 'Go on with: HEARTH_HOME=%s %s run -it --rm demo sh\n' "$home" "$hearth"
