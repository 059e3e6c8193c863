"""huggingface_hub works offline in a cache that the source has, in several processes.

Its blobs are large, its snapshots are symlinks to them, and whoever changes something holds a lock
of the `filelock` kind, in a directory of their own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import (
    hf_hub_download,
    scan_cache_dir,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.utils import WeakFileLock

from integration.programs import actors
from integration.programs.turns import Stage, Step, Turns, explore, interleavings

REPOSITORY = "somebody/model"
TOP = "models--somebody--model"
OLD, MAIN, NEW = ("1" * 40, "2" * 40, "3" * 40)
FILES = ("config.json", "model.safetensors", "missing.txt")


def fill(directory: Path) -> None:
    """Two revisions, which share the weights."""
    noise = random.Random(1)
    weights = noise.randbytes(2 << 20)
    add(directory, OLD, {"config.json": b"{}\n", "model.safetensors": weights})
    add(directory, MAIN, {"config.json": b'{"more": 1}\n', "model.safetensors": weights})


def add(cache: Path, revision: str, files: dict[str, bytes]) -> None:
    """What a download leaves: docs of huggingface_hub, "Understand caching"."""
    top = cache / TOP
    snapshot = top / "snapshots" / revision
    for path in (top / "blobs", top / "refs", snapshot):
        path.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        digest = hashlib.sha256(data).hexdigest()
        locks = cache / ".locks" / TOP
        locks.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(locks / f"{digest}.lock", timeout=0.05):
            blob = top / "blobs" / digest
            if not blob.exists():
                part = blob.with_name(f"{digest}.incomplete")
                with part.open("ab") as file:
                    while file.tell() < len(data):
                        file.write(data[file.tell() : file.tell() + 300_000])
                part.replace(blob)
            link = snapshot / name
            if not link.is_symlink():
                link.symlink_to(os.path.relpath(blob, snapshot))
    (top / "refs" / "main").write_text(revision)


class Player(actors.Player):
    """A process with files, and a lock, that stay open."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._files: dict[int, Any] = {}
        self._lock = contextlib.ExitStack()

    def scan(self) -> object:
        """All but the times of it."""
        found = scan_cache_dir(self.root)
        repositories = [
            (
                *(repository.repo_id, repository.size_on_disk, repository.nb_files),
                sorted(
                    (
                        *(one.commit_hash, one.size_on_disk, sorted(one.refs)),
                        sorted((f.file_name, f.size_on_disk) for f in one.files),
                    )
                    for one in repository.revisions
                ),
            )
            for repository in found.repos
        ]
        warnings = sorted(str(one).replace(str(self.root), "ROOT") for one in found.warnings)
        return found.size_on_disk, sorted(repositories), warnings

    def find(self, name: str, revision: str) -> object:
        """Where a file of the cache is, and a checksum of it."""
        found = try_to_load_from_cache(REPOSITORY, name, cache_dir=self.root, revision=revision)
        if not isinstance(found, str):
            return repr(type(found))
        return os.path.relpath(found, self.root), zlib.crc32(Path(found).read_bytes())

    def snapshot(self, revision: str) -> object:
        found = Path(
            snapshot_download(
                REPOSITORY, revision=revision, cache_dir=self.root, local_files_only=True
            )
        )
        files = sorted((path.name, path.stat().st_size) for path in found.iterdir())
        return os.path.relpath(found, self.root), files

    def download(self, name: str, revision: str) -> str:
        found = hf_hub_download(
            REPOSITORY, name, revision=revision, cache_dir=self.root, local_files_only=True
        )
        return os.path.relpath(found, self.root)

    def delete(self, *revisions: str) -> object:
        strategy = scan_cache_dir(self.root).delete_revisions(*revisions)
        strategy.execute()
        return strategy.expected_freed_size

    def add(self, revision: str, value: int) -> None:
        weights = bytes([value]) * (2 << 20)
        add(self.root, revision, {"config.json": b"[]\n", "model.safetensors": weights})

    def lock(self, value: int) -> None:
        """Hold the lock of what `add` would add."""
        self.unlock()
        digest = hashlib.sha256(bytes([value]) * (2 << 20)).hexdigest()
        locks = self.root / ".locks" / TOP
        self._lock.enter_context(WeakFileLock(locks / f"{digest}.lock", timeout=0.05))

    def unlock(self) -> None:
        self._lock.close()

    def open(self, slot: int, name: str, revision: str) -> None:
        path = self.root / TOP / "snapshots" / revision / name
        self.close(slot)
        self._files[slot] = path.open("rb", buffering=0)

    def see(self, slot: int) -> int:
        self._files[slot].seek(0)
        return zlib.crc32(self._files[slot].read())

    def close(self, slot: int) -> None:
        if slot in self._files:
            self._files.pop(slot).close()


def check(turns: Turns) -> None:
    for side in (turns.native, turns.copy):
        side.end()
    turns.do("checker", "scan")
    for revision in (OLD, MAIN, NEW, "main"):
        turns.do("checker", "snapshot", revision)
        for name in FILES:
            turns.do("checker", "find", name, revision)


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    return make_stage(fill)


# --- stories --------------------------------------------------------------------------------------


def test_weights_stay_readable_while_their_revisions_are_deleted(stage: Stage) -> None:
    with stage.turns() as turns:
        for slot, revision in enumerate((OLD, MAIN)):
            turns.gives(None, "reader", "open", slot, "model.safetensors", revision)
        before = turns.do("reader", "see", 0)
        assert turns.do("janitor", "scan").kind == "gave"
        for revision in (OLD, MAIN):
            assert turns.do("janitor", "delete", revision).kind == "gave"
            assert turns.do("reader", "see", 0) == before
            turns.do("janitor", "scan")
            turns.do("reader", "find", "model.safetensors", MAIN)
        turns.do("writer", "add", NEW, 7)
        assert turns.do("reader", "snapshot", "main").kind == "gave"
        assert turns.do("reader", "see", 1) == before
        check(turns)


def test_one_process_at_a_time_has_the_lock_of_a_blob(stage: Stage) -> None:
    with stage.turns() as turns:
        turns.gives(None, "first", "lock", 7)
        turns.fails("Timeout", "second", "lock", 7)
        turns.fails("Timeout", "second", "add", NEW, 7)
        turns.gives(None, "second", "lock", 8)
        turns.kill("first")
        turns.gives(None, "second", "lock", 7)
        turns.fails("Timeout", "third", "add", NEW, 7)
        turns.gives(None, "second", "unlock")
        turns.gives(None, "third", "add", NEW, 7)
        check(turns)


# --- made-up interleavings ------------------------------------------------------------------------


def plan(chance: random.Random) -> tuple[str, list[Step]]:
    """A reader has weights open; then revisions come and go."""
    revisions = (OLD, MAIN, NEW)
    steps: list[Step] = [("first", "open", 0, "model.safetensors", chance.choice(revisions[:2]))]
    for _ in range(chance.randint(10, 20)):
        actor = chance.choice(["first", "second", "third"])
        revision, name = chance.choice((*revisions, "main")), chance.choice(FILES)
        steps.append(
            chance.choices(
                (
                    ("first", "see", 0),
                    (actor, "scan"),
                    (actor, "find", name, revision),
                    (actor, "snapshot", revision),
                    (actor, "download", name, revision),
                    (actor, "delete", chance.choice(revisions)),
                    (actor, "add", chance.choice(revisions), chance.randrange(3)),
                    (actor, "lock", chance.randrange(3)),
                    (actor, "unlock"),
                    (actor, "open", chance.randrange(2), name, chance.choice(revisions)),
                    (actor, "killed"),
                ),
                (3, 2, 3, 2, 2, 2, 3, 1, 1, 2, 1),
            )[0]
        )
    return "", steps


def play(turns: Turns, example: tuple[str, list[Step]]) -> None:
    turns.play(example[1])
    check(turns)


def test_processes_take_turns_as_on_xfs(stage: Stage) -> None:
    explore(6, interleavings(plan), stage.playing(play))
