#!/bin/bash
# ./test.sh                 set up, then lint, native tests, sanitizers, unit tests, integration tests
# ./test.sh --quick         what needs no minute of that: no sanitizers, and of integration what is marked `quick`
# ./test.sh --exhaustive    all of it, with ten times as much of what tests make up (integration/effort.py)
# ./test.sh PYTEST-ARGS...  set up, then only pytest with these arguments, such as: integration -k truncate
# Needs root, /dev/fuse and loop devices; installs with apt and pip what is missing.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
# shellcheck source=.ci/setup.sh
source .ci/setup.sh

if [[ ${1:-} == --help ]]; then
    sed -n '2,6s/^# //p' test.sh
    exit 0
fi

need_machine loop
install_packages "${BUILD_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
make_venv demo test
export PATH=$PWD/.venv/bin:$PATH

# What the run starts carries this mark, and what it mounts lies below this directory: see integration/kernel.py.
COWFS_TEST_SESSION=$(cat /proc/sys/kernel/random/uuid)
COWFS_TEST_DIR=$(mktemp -d /var/tmp/cowfs-test-XXXXXX)
COWFS_TEST_RUN=$COWFS_TEST_DIR
export COWFS_TEST_SESSION COWFS_TEST_DIR COWFS_TEST_RUN
chmod 755 "$COWFS_TEST_DIR" # tests look into it as other users, too

# Every process of this run but this shell, whose own environment is older than the mark.
left_processes() (
    mark=COWFS_TEST_SESSION=$COWFS_TEST_SESSION
    unset COWFS_TEST_SESSION # or what is called here would find itself
    # Each worker of pytest has its own mark, which begins with this one.
    grep -lszE -- "^$mark(-gw[0-9]+)?\$" /proc/[0-9]*/environ | cut -d / -f 3
)
left_mounts() { awk -v below="$COWFS_TEST_DIR/" 'index($5, below) == 1 { print $5 }' /proc/self/mountinfo | tac; }
left_loops() {
    losetup --noheadings --raw --output NAME,BACK-FILE |
        awk -v below="$COWFS_TEST_DIR/" 'index($2, below) == 1 { print $1 }'
}

# check_left: name, take away and fail for what the tests' own check has missed or could not remove.
check_left() {
    local status=$? pid device path
    trap '' INT TERM
    while read -r path; do
        echo "test.sh: left mounted: $path" >&2
        umount -i -l "$path" || true
        status=1
    done < <(left_mounts)
    while read -r pid; do
        echo "test.sh: left running: $pid $(tr '\0' ' ' <"/proc/$pid/cmdline")" >&2
        kill -KILL "$pid" || true
        status=1
    done < <(left_processes)
    while read -r device; do
        echo "test.sh: left attached: $device" >&2
        losetup --detach "$device" || true
        status=1
    done < <(left_loops)
    rm -rf --one-file-system "$COWFS_TEST_DIR"
    exit "$status"
}
trap check_left EXIT

selected=(tests integration)
if [[ ${1:-} == --quick || ${1:-} == --exhaustive ]] && (($# > 1)); then
    die "$1 takes no arguments: $2"
fi
case ${1:-} in
    --quick) selected+=(-m quick) ;;
    --exhaustive) export COWFS_EFFORT=10 ;;
    ?*)
        pytest "$@"
        exit
        ;;
esac

say "Lint"
shellcheck -x quickstart.sh test.sh .ci/setup.sh .ci/run .ci/sanitize mount_helpers/*.cowfs \
    packaging/*
ruff check .
mypy

say "Native tests, warnings are errors"
build=$COWFS_TEST_DIR/build
meson setup --fatal-meson-warnings -Dwerror=true "$build" .
meson compile -C "$build"
meson test -C "$build" --print-errorlogs

if [[ ${1:-} != --quick ]]; then
    say "Native tests under the sanitizers"
    .ci/sanitize
fi

say "Unit and integration tests"
# Tests wait more than they work: each processor has one worker, and the last ones take from each other.
pytest --durations=10 --numprocesses="$(nproc)" --dist=worksteal "${selected[@]}"
