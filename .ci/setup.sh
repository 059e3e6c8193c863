# shellcheck shell=bash
# The set-up that quickstart.sh and test.sh share: Debian packages, the environment .venv, the build.
# Sourced from the root of the tree. Installs only what is missing, so that a second run does nothing.
# shellcheck disable=SC2034 # the lists are used where this is sourced

# What pip needs to build pyfuse3 and our own extension, and what makes a volume.
BUILD_PACKAGES=(gcc libc6-dev pkg-config libfuse3-dev liburing-dev mount xfsprogs)
# What the tests call besides.
TEST_PACKAGES=(btrfs-progs e2fsprogs attr acl fio shellcheck stress-ng strace git rsync make patch cpio vim-tiny
    bash-completion fish zsh man-db mandoc logrotate
    mmdebstrap systemd-container python3 python3-dev python3-venv dpkg
    qemu-system-x86 busybox-static kmod umoci)

say() { printf '\e[1m==> %s\e[0m\n' "$*" >&2; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# need_machine [loop]: mounts need root and /dev/fuse, volumes in a file need loop devices. Say what is missing before
# anything is installed.
need_machine() {
    [[ $(id -u) == 0 ]] || die "mounting filesystems needs root: run it with sudo, or as root"
    # Opening the node loads the module where it is not built in; so it is opened, not looked at.
    { [[ -c /dev/fuse ]] && (exec 3<>/dev/fuse) 2>/dev/null; } ||
        die "cannot open /dev/fuse: load the module (modprobe fuse), or start the container with --device /dev/fuse"
    [[ ${1:-} != loop || -e /dev/loop-control ]] ||
        die "there is no /dev/loop-control: load the module (modprobe loop), or start the container with --privileged"
}

# install_packages PACKAGE...: those that are missing, with apt.
install_packages() {
    local package log missing=()
    for package; do
        [[ $(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
            missing+=("$package")
    done
    [[ ${#missing[@]} -gt 0 ]] || return 0
    command -v apt-get >/dev/null ||
        die "these Debian packages are needed, and there is no apt-get to install them: ${missing[*]}"
    say "Installing ${missing[*]}"
    # A fresh image has no package lists, and old ones name versions that are gone from the archive.
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    apt-get update -qq >"$log" 2>&1 || say "apt-get update failed, going on with the package lists that are there"
    if ! apt-get install -y -qq --no-install-recommends "${missing[@]}" >>"$log" 2>&1; then
        cat "$log" >&2
        die "apt-get could not install ${missing[*]}"
    fi
    rm -f "$log"
}

# find_python: print the Python to build with: the one on PATH when it will do, else Debian's own. Of an environment that
# is active, the one that has made it: it may be our .venv, which is made anew with what is found here.
find_python() {
    local python
    for python in "$(command -v python3 || true)" /usr/bin/python3; do
        if [[ -n $python ]] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            "$python" -c 'import sys; print(sys._base_executable)'
            return
        fi
    done
}

# make_venv EXTRA...: bring .venv up to date with the sources and the optional dependencies named.
make_venv() {
    local python stamp wanted extra extras stale=0
    python=$(find_python)
    if [[ -z $python || $python == /usr/bin/* ]]; then
        install_packages python3 python3-dev python3-venv
        python=/usr/bin/python3
    fi
    exec 9<"$PWD"
    flock 9 # two runs at once would build into the same place

    # The scripts in .venv name their interpreter by its full path: made elsewhere or by another Python, it is useless.
    stamp=.venv/made-by
    wanted="$PWD $python $("$python" --version)"
    if [[ ! -x .venv/bin/python || $(cat "$stamp" 2>/dev/null) != "$wanted" ]]; then
        say "Making the environment .venv with $python"
        rm -rf .venv
        "$python" -m venv .venv
        printf '%s\n' "$wanted" >"$stamp"
    fi

    stamp=.venv/built-from
    wanted=$(source_hash)
    if [[ $(cat "$stamp" 2>/dev/null) != "$wanted" ]]; then
        rm -f .venv/has-*
    fi
    for extra; do
        [[ -e .venv/has-$extra ]] || stale=1
    done
    if [[ $stale == 1 ]]; then
        extras=$(IFS=,; printf '%s' "$*")
        say "Building cowfs and installing it into .venv"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check ".[$extras]" >&2
        printf '%s\n' "$wanted" >"$stamp"
        touch "${@/#/.venv/has-}"
    fi
    exec 9<&-
}

# source_hash: one line that changes with everything that goes into the installed package.
source_hash() {
    find pyproject.toml meson.build cowfs mount_helpers systemd -type f \
        ! -name '*.so' ! -name '*.pyc' -print0 2>/dev/null |
        sort -z | xargs -0 sha256sum | sha256sum | cut -d ' ' -f 1
}
