"""What only btrfs has: files without checksums (chattr +C), which it clones to their like alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from integration.command import cowfs
from integration.mounts import MountCopy
from integration.trees import MIB, tree_state

pytestmark = pytest.mark.filesystems("btrfs")

KINDS = ["plain", "attributes"]  # those with attributes are cloned in another way


def is_nocow(path: Path) -> bool:
    listed = subprocess.run(["lsattr", "-d", path], check=True, capture_output=True, text=True)
    return "C" in listed.stdout.split()[0]


@pytest.fixture
def source(xfs: Path) -> Path:
    """Files with checksums and without, in turns."""
    source = xfs / "source"
    source.mkdir()
    for number in range(6):
        for kind in KINDS:
            path = source / f"{kind}{number}"
            path.touch()
            if number % 2:
                subprocess.run(["chattr", "+C", path], check=True)
            path.write_bytes(bytes([number]) * MIB)
            if kind == "attributes":
                subprocess.run(["setfattr", "-n", "user.number", "-v", str(number), path])
    return source


def assert_same(copy: Path, source: Path) -> None:
    assert tree_state(copy) == tree_state(source)
    for path in source.iterdir():
        assert is_nocow(copy / path.name) == is_nocow(path), path.name


def test_files_without_checksums_are_sealed_and_copied_up(
    mount_plain: MountCopy, source: Path
) -> None:
    before = tree_state(source)
    root = mount_plain(source, None, "copy=made")
    assert tree_state(root) == before
    made = Path(mount_plain.record(root)["store"])
    assert_same(made / "templates" / mount_plain.record(root)["template"] / "tree", source)
    for path in sorted(root.iterdir()):
        with path.open("r+b") as file:
            file.write(b"mine")
    (root / "plain1").chmod(0o600)
    assert all(
        (root / name).read_bytes()[:5] == b"mine" + before_byte(name)
        for name in before
        if name != "."
    )
    assert is_nocow(made / "copies/made/upper/plain1")
    assert not is_nocow(made / "copies/made/upper/plain2")
    assert tree_state(source) == before


def before_byte(name: str) -> bytes:
    return bytes([int(name[-1])])


@pytest.mark.parametrize("into", ["plain", "+C"])
@pytest.mark.parametrize("command", ["clone", "import"])
def test_files_without_checksums_are_cloned_wherever_they_go(
    source: Path, xfs: Path, command: str, into: str
) -> None:
    place = xfs / "place"
    place.mkdir()
    if into == "+C":
        subprocess.run(["chattr", "+C", place], check=True)
    cowfs(command, source, place / "copy")
    assert_same(place / "copy", source)
