"""stress-ng's filesystem stressors, which verify what they do, in a copy.

A copy may fail only what XFS itself fails. Each group runs all of its stressors at once, so that
they meet each other in the daemon.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from integration.command import run
from integration.effort import EFFORT
from integration.mounts import MountCopy
from integration.oracle import Oracle
from integration.trees import tree_state

SECONDS = 3 * EFFORT

# Of stress-ng's class "filesystem" these are left out:
#   bind-mount, binderfs    mount things
#   fanotify                opens files of every filesystem of the machine
#   io                      calls sync(2) only, for the whole machine
#   iomix                   drops the caches of the whole machine
#   procfs                  reads all of /proc, and nothing else
#   eventfd                 has to do with no filesystem
#   fiemap, inode-flags     ioctls that a copy does not have, see docs/semantics.md
#   verity                  XFS has none
# Those of other classes that use files are there instead.
GROUPS = {
    "attributes": ["access", "chattr", "chmod", "chown", "fstat", "utime", "xattr", "touch"],
    "directories": ["chdir", "dir", "dirdeep", "dirmany", "dentry", "getdent", "dnotify"],
    "names": ["link", "symlink", "rename", "mknod", "filename", "inotify", "handle", "open"],
    "locks": ["flock", "lockf", "locka", "lockofd", "lease", "fcntl", "dup", "ioprio"],
    "data": ["fallocate", "fpunch", "fsize", "hdd", "copy-file", "sync-file", "seek", "fault"],
    "more-data": ["aio", "io-uring", "file-ioctl", "mmap", "readahead", "revio", "sendfile"],
}
# Each stressor at the sizes that fill no volume and need no memory to speak of.
SIZES = {
    "copy-file": ["--copy-file-bytes", "128M"],
    "fallocate": ["--fallocate-bytes", "128M"],
    "hdd": ["--hdd-bytes", "64M", "--hdd-opts", "direct,fsync,rd-rnd,wr-rnd"],
    "mmap": ["--mmap-bytes", "32M", "--mmap-file"],
    "readahead": ["--readahead-bytes", "64M"],
    "revio": ["--revio-bytes", "64M"],
    "seek": ["--seek-size", "64M"],
    "sync-file": ["--sync-file-bytes", "64M"],
}
# The daemon keeps at most so many directories open: see layers.py.
CACHED_DIRECTORIES = 1024


def failures(directory: Path, stressors: list[str], seconds: int) -> dict[str, list[str]]:
    """What each stressor says about what failed, or did not run, when all work in `directory`."""
    directory.mkdir()
    arguments = [arg for name in stressors for arg in (f"--{name}", "1", *SIZES.get(name, ()))]
    result = run(
        *("stress-ng", "--verify", "--timeout", f"{seconds}s", "--temp-path", directory),
        *("--no-rand-seed", *arguments),
        check=False,
        timeout=seconds + 100,
    )
    output = result.stdout + result.stderr
    found: dict[str, list[str]] = {}
    pattern = r"stress-ng: (?:fail|error): +\[\d+\] ([\w-]+): (.*)|(?:info).* ([\w-]+): (.*skipp.*)"
    for name, message, skipped, reason in re.findall(pattern, output):
        found.setdefault(name or skipped, []).append(message or reason)
    assert result.returncode == 0 or found, output
    directory.rmdir()  # fails when they left something there
    return found


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.timeout(3 * SECONDS + 400)
def test_stressors_find_no_fault_that_xfs_does_not_have(
    mount_copy: MountCopy, model: Path, xfs: Path, group: str
) -> None:
    oracle = Oracle.beside(mount_copy(model), model, xfs / "native")
    before = tree_state(model)
    failed = failures(oracle.copy / "stress", GROUPS[group], SECONDS)
    for name in failed:
        assert failures(oracle.native / "stress", [name], 3), f"a copy only: {name}: {failed[name]}"
    oracle.assert_same_trees(times=False)
    pid = mount_copy.daemon_pid(oracle.copy)
    assert len(os.listdir(f"/proc/{pid}/fd")) < CACHED_DIRECTORIES + 100
    copy = mount_copy.record(oracle.copy)
    mount_copy.unmount(oracle.copy)
    work = Path(copy["store"], "copies", copy["copy"], "work")
    assert not list(work.iterdir())
    again = mount_copy(model, oracle.copy)
    assert tree_state(again, times=False) == tree_state(oracle.native, times=False)
    assert tree_state(model) == before
