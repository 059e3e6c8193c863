"""A copy is what its source was when it was mounted, and outlives it."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from integration.mounts import MountCopy
from integration.trees import tree_state

pytestmark = pytest.mark.filesystems("xfs", "btrfs")

GIB = 1 << 30


def change(source: Path) -> None:
    (source / "weights.bin").write_bytes(b"rewritten")
    with (source / "config.json").open("a") as file:
        file.write("more")
    (source / "tokenizer" / "vocab.txt").unlink()
    (source / "added").touch()
    (source / "script.sh").chmod(0o600)


def rename(source: Path) -> None:
    source.rename(source.with_name("elsewhere"))


def delete(source: Path) -> None:
    shutil.rmtree(source)


@pytest.mark.parametrize("happens", [change, rename, delete])
def test_copy_does_not_follow_its_source(
    mount_copy: MountCopy, model: Path, happens: object
) -> None:
    before = tree_state(model)
    copy = mount_copy(model)
    happens(model)  # type: ignore[operator]
    assert tree_state(copy) == before


def test_copies_do_not_see_each_other(mount_copy: MountCopy, model: Path) -> None:
    before = tree_state(model)
    one, two = mount_copy(model), mount_copy(model)
    (one / "weights.bin").write_bytes(b"one")
    (one / "tokenizer").rename(one / "moved")
    (one / "new").touch()
    assert tree_state(two) == before
    assert tree_state(model) == before


def test_read_only_mount_refuses_every_change(mount_copy: MountCopy, model: Path) -> None:
    copy = mount_copy(model, None, "ro")
    assert tree_state(copy) == tree_state(model)
    for act in (
        lambda: (copy / "config.json").write_text("x"),
        lambda: (copy / "new").touch(),
        lambda: (copy / "config.json").unlink(),
        lambda: (copy / "config.json").chmod(0o600),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            act()


def test_139_gb_of_sparse_files_are_mounted_at_once(mount_plain: MountCopy, xfs: Path) -> None:
    source = xfs / "huge"
    source.mkdir()
    for number in range(30):
        with (source / f"model-{number:05}-of-00030.safetensors").open("wb") as file:
            file.truncate(139 * 10**9 // 30)
            for place in range(5):
                file.seek(place * GIB // 2)
                file.write(os.urandom(65536))
    os.sync()
    started = time.monotonic()
    copy = mount_plain(source)
    elapsed = time.monotonic() - started
    print(f"139 GB mounted in {elapsed:.3f} s")
    assert sum(p.stat().st_size for p in copy.iterdir()) > 138 * 10**9
    assert tree_state_of_first_bytes(copy) == tree_state_of_first_bytes(source)


def tree_state_of_first_bytes(root: Path) -> list[tuple[str, int, int, bytes]]:
    state = []
    for path in sorted(root.iterdir()):
        with path.open("rb") as file:
            st = os.fstat(file.fileno())
            state.append((path.name, st.st_size, st.st_mtime_ns, file.read(4096)))
    return state
