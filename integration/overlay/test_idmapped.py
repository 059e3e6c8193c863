"""Idmapped mounts of a copy, as containers with a user namespace have them (Linux 6.12).

A tree of the same content on XFS is mounted in the same way, and all that is done to one is done to
the other: mount_setattr(2), MOUNT_ATTR_IDMAP.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowfs.mount import probes
from integration.mounts import MountCopy
from integration.volumes import unmount

_HOST_ROOT = 100_000  # as whom the root of the container acts on the host
_USER = 1000

_libc = ctypes.CDLL(None, use_errno=True)
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_EMPTY_PATH, _AT_RECURSIVE, _OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = 0x1000, 0x8000, 1, 4
_MOUNT_ATTR_IDMAP = 0x100000


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


@contextlib.contextmanager
def _namespace() -> Iterator[int]:
    """A user namespace whose ids begin at `_HOST_ROOT` on the host."""
    with subprocess.Popen(["unshare", "--user", "sleep", "infinity"]) as process:
        try:
            while os.readlink(f"/proc/{process.pid}/ns/user") == os.readlink("/proc/self/ns/user"):
                pass
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{process.pid}/{name}").write_text(f"0 {_HOST_ROOT} 65536")
            fd = os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield fd
            finally:
                os.close(fd)
        finally:
            process.kill()


def _mount_mapped(directory: Path, target: Path, namespace: int) -> None:
    tree = _call(_OPEN_TREE, -100, os.fsencode(directory), _OPEN_TREE_CLONE | os.O_CLOEXEC)
    try:
        attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_IDMAP, 0, 0, namespace)
        size = ctypes.sizeof(attributes)
        _call(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), size)
        target.mkdir()
        to = os.fsencode(target)
        _call(_MOVE_MOUNT, tree, b"", -100, to, _MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)


_SCRIPT = """
set -u
cd "$1"
say() { stat -c '%n %u %g %A %h %s' "$@" 2>&1; }
echo private > made; say made
mkdir directory; mkfifo fifo; ln -s made link; ln made hard; say directory fifo link made
chmod 2775 directory; echo x > directory/inside; say directory/inside
mv hard moved; rm link; say moved link
echo more >> shared; say shared; chmod 640 shared; say shared
chown $3 shared; say shared; chgrp $4 shared; say shared
cp shared setuid; chmod 6755 setuid; say setuid; echo x >> setuid; say setuid
chmod 6755 setuid; truncate -s 1 setuid; say setuid
chmod 6755 setuid; fallocate -l 9000 setuid; say setuid
chmod 6755 setuid; chown $2 setuid; say setuid
setfattr -n user.mine -v 1 made; getfattr -d made; getfattr -d -m - made | sort
setfacl -m u:1005:rw made; getfacl -n made 2>&1
touch -d @1000 made; stat -c %Y made
ls -ln | sed 's/ [A-Z][a-z][a-z] .*[0-9] / /'
"""


@pytest.fixture
def trees(mount_copy: MountCopy, xfs: Path, tmp_path: Path) -> Iterator[tuple[Path, Path, Path]]:
    """The same tree mapped, of a copy and of XFS; and the copy itself."""
    source = xfs / "source"
    source.mkdir()
    source.chmod(0o777)
    for name, owner in (("shared", 0), ("of-a-user", _USER)):
        (source / name).write_bytes(os.urandom(2 << 20))
        os.chown(source / name, owner, owner)
    native = xfs / "native"
    subprocess.run(["cp", "-a", "--reflink=always", source, native], check=True)
    copy = mount_copy(source)
    mapped = tmp_path / "mapped-copy", tmp_path / "mapped-native"
    with _namespace() as namespace:
        try:
            for directory, target in zip((copy, native), mapped, strict=True):
                _mount_mapped(directory, target, namespace)
            yield *mapped, copy
        finally:
            for target in mapped:
                if target.is_mount():
                    unmount(target)


def _as(uid: int, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    ids = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    command = ["setpriv", *ids, "sh", "-c", script, "sh", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.skipif(
    not probes.fuse().flags & 1 << 40, reason="Linux 6.12 has FUSE_ALLOW_IDMAP: docs/kernels.md"
)
@pytest.mark.parametrize("user", [0, _USER])
def test_an_idmapped_copy_is_as_an_idmapped_directory(
    trees: tuple[Path, Path, Path], user: int
) -> None:
    copy, native, _unmapped = trees
    uid = _HOST_ROOT + user
    expected = _as(uid, _SCRIPT, native, uid, uid, uid)
    got = _as(uid, _SCRIPT, copy, uid, uid, uid)
    assert "private" not in expected.stderr
    assert got.stdout == expected.stdout
    assert got.stderr == expected.stderr.replace(str(native), str(copy))
    assert f"made {uid} {uid} " in got.stdout


@pytest.mark.skipif(
    not probes.fuse().flags & 1 << 40, reason="Linux 6.12 has FUSE_ALLOW_IDMAP: docs/kernels.md"
)
def test_the_copy_itself_has_the_ids_that_the_mapping_gives(
    trees: tuple[Path, Path, Path],
) -> None:
    mapped, _native, copy = trees
    assert _as(_HOST_ROOT + _USER, 'echo mine > "$1"/mine; mkdir "$1"/d', mapped).returncode == 0
    for name in ("mine", "d"):
        st = (copy / name).stat()
        assert (st.st_uid, st.st_gid) == (_USER, _USER)
        st = (mapped / name).stat()
        assert (st.st_uid, st.st_gid) == (_HOST_ROOT + _USER, _HOST_ROOT + _USER)
    # Whom the mapping does not know can make nothing.
    refused = _as(_USER, 'echo x > "$1"/refused', mapped)
    assert refused.returncode != 0
    assert "too large" in refused.stderr
    assert not (copy / "refused").exists()


@pytest.mark.parametrize("groups", [[], [_USER + 7]])
def test_callers_without_a_mapping_are_known_as_before(
    mount_copy: MountCopy, xfs: Path, groups: list[int]
) -> None:
    """Their requests say as little, once the kernel knows that mounts may be mapped."""
    source = xfs / "source"
    source.mkdir()
    source.chmod(0o777)
    for name, mode in (("a", 0o6755), ("b", 0o2644), ("c", 0o4711)):
        (source / name).write_bytes(b"x" * 8192)
        os.chown(source / name, _USER, _USER + 7)
        (source / name).chmod(mode)
    native = xfs / "native"
    subprocess.run(["cp", "-a", "--reflink=always", source, native], check=True)
    copy = mount_copy(source)
    script = """
cd "$1"
for f in a b c; do fallocate -l 9000 $f; stat -c '%n %A %u %g' $f; done
for f in a b c; do chgrp $2 $f; stat -c '%n %A %u %g' $f; done
for f in a b c; do chmod ug+s $f; truncate -s 100 $f; stat -c '%n %A %u %g' $f; done
"""
    wanted = ",".join(map(str, groups))
    ids = [f"--reuid={_USER}", f"--regid={_USER}"]
    ids.append(f"--groups={wanted}" if groups else "--clear-groups")
    said = [
        subprocess.run(
            ["setpriv", *ids, "sh", "-c", script, "sh", directory, str(_USER)],
            capture_output=True,
            text=True,
            check=False,
        )
        for directory in (native, copy)
    ]
    assert said[0].stdout == said[1].stdout
    assert said[0].stderr == said[1].stderr
    assert stat.S_IMODE((native / "a").stat().st_mode) == stat.S_IMODE((copy / "a").stat().st_mode)
