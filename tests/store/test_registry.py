"""Stores that are remembered, and when they are forgotten."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cowfs.store import directory, registry


class Disk:
    """A directory for stores that is a volume, and one that stands for /var/lib/cowfs."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.volume = path / "volume"
        self.volume.mkdir()
        self.state = path / "state"
        self.mounted = True
        monkeypatch.setattr(registry, "STATE_DIR", str(self.state))
        monkeypatch.setattr(directory, "OWNER", self.state.parent.stat().st_uid)
        monkeypatch.setattr(directory, "volume_of", lambda _: self._volume())

    def _volume(self) -> str:
        return str(self.volume) if self.mounted else str(self.volume.parent)

    def store(self, name: str) -> Any:
        path = self.volume / name
        path.mkdir(mode=0o700)
        (path / "templates").mkdir(mode=0o700)
        fd, _ = directory.open_directory(str(path), create=False)
        return SimpleNamespace(path=str(path), fd=fd)

    def entry(self) -> Path:
        [path] = (self.state / "stores").iterdir()
        return path


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(tmp_path, monkeypatch)


def paths() -> list[str]:
    return [entry.path for entry in registry.entries()]


def test_a_store_is_remembered_once_and_only_if_it_lies_elsewhere(disk: Disk) -> None:
    registry.remember(disk.store(".cowfs"))
    assert paths() == []
    store = disk.store("elsewhere")
    registry.remember(store)
    first = disk.entry().stat().st_ino
    registry.remember(store)
    assert disk.entry().stat().st_ino == first  # it was not written again
    assert paths() == [store.path]
    assert (disk.state / "stores").stat().st_mode & 0o777 == 0o700


def test_a_store_that_is_removed_from_its_volume_is_forgotten_at_once(disk: Disk) -> None:
    store = disk.store("elsewhere")
    registry.remember(store)
    shutil.rmtree(store.path)
    assert paths() == []
    assert list((disk.state / "stores").iterdir()) == []


def test_a_volume_that_is_not_mounted_keeps_its_store_for_a_while(disk: Disk) -> None:
    store = disk.store("elsewhere")
    registry.remember(store)
    shutil.rmtree(store.path)
    disk.mounted = False
    assert paths() == [store.path]
    assert registry.opened(registry.entries()[0]) is None
    value = json.loads(disk.entry().read_text())
    value["seen"] = time.time() - registry.FORGET_AFTER - 1
    disk.entry().write_text(json.dumps(value))
    assert paths() == []


def test_a_store_that_is_seen_again_lives_on(disk: Disk) -> None:
    store = disk.store("elsewhere")
    registry.remember(store)
    value = json.loads(disk.entry().read_text())
    value["seen"] = time.time() - 2 * 86400
    disk.entry().write_text(json.dumps(value))
    registry.remember(store)
    assert registry.entries()[0].seen > time.time() - 60


def test_another_directory_at_its_path_is_not_opened(disk: Disk) -> None:
    store = disk.store("elsewhere")
    registry.remember(store)
    [entry] = registry.entries()
    Path(store.path).rename(disk.volume / "moved")
    Path(store.path).mkdir(mode=0o700)
    assert registry.opened(entry) is None
    assert paths() == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"path": 1}', '{"path": "/a", "seen": "x", "inode": 1}']
)
def test_an_entry_that_is_damaged_is_no_obstacle(disk: Disk, text: str) -> None:
    store = disk.store("elsewhere")
    registry.remember(store)
    disk.entry().write_text(text)
    assert paths() == []
    registry.remember(store)
    assert paths() == [store.path]


def test_an_entry_of_a_later_version_is_read(disk: Disk) -> None:
    store = disk.store("elsewhere")
    registry.remember(store)
    value = json.loads(disk.entry().read_text())
    disk.entry().write_text(json.dumps({**value, "colour": "green"}))
    assert paths() == [store.path]


def test_nothing_is_remembered_where_nothing_is_kept(disk: Disk) -> None:
    assert paths() == []
    assert not registry.forget("/none")
