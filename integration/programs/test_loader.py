"""A data loader: workers that were forked after the files were opened, as torch's loaders do.

Workers share the descriptors of their parent with their positions, and its mappings; others write
new checkpoints, and append to what is known to grow.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import zlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from integration.programs import actors
from integration.programs.turns import Stage, Step, Turns, explore, interleavings

_FORK = multiprocessing.get_context("fork")
TENSORS, NAMES = "shard.safetensors", ("a", "b", "c")
#: A large array, a small one, and an index that grows: its name is one of a log.
FILES = ("tokens.bin", "small.bin", "index.log")


def fill(directory: Path) -> None:
    noise = numpy.random.default_rng(1)
    tensors = {name: noise.standard_normal((300, 500), numpy.float32) for name in NAMES}
    save_file(tensors, directory / TENSORS)
    (directory / "tokens.bin").write_bytes(noise.bytes(3 << 20))
    (directory / "small.bin").write_bytes(noise.bytes(30_000))
    lines = "".join(json.dumps({"sample": number}) + "\n" for number in range(80_000))
    (directory / "index.log").write_text(lines)
    assert len(lines) > 1 << 20


class Player(actors.Player):
    """A process that opens files, forks workers, and asks them; or one that writes."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._files: dict[str, Any] = {}
        self._maps: dict[str, Any] = {}
        self._tensors: Any = None
        self._workers: dict[int, Connection] = {}

    def open(self) -> None:
        self._tensors = safe_open(self.root / TENSORS, framework="np")
        for name in FILES:
            self._files[name] = (self.root / name).open("rb", buffering=0)
            self._maps[name] = numpy.memmap(self.root / name, numpy.uint8, "r")

    def fork(self, number: int) -> None:
        if number in self._workers:
            return
        ours, theirs = _FORK.Pipe()
        process = _FORK.Process(target=self._work, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self._workers[number] = ours

    def _work(self, connection: Connection) -> None:
        while True:
            try:
                action, args = connection.recv()
            except EOFError:
                os._exit(0)  # what the parent has open is not the worker's to close
            try:
                connection.send(getattr(self, action)(*args))
            except Exception as error:
                connection.send(self.describe(error))

    def ask(self, number: int, action: str, *args: Any) -> object:
        """A step of a worker."""
        self._workers[number].send((action, args))
        if not self._workers[number].poll(actors.PATIENCE):
            raise TimeoutError("the worker does not answer")
        return self._workers[number].recv()

    def tensor(self, name: str) -> int:
        return zlib.crc32(self._tensors.get_tensor(name).tobytes())

    def rows(self, name: str, first: int) -> int:
        return zlib.crc32(self._tensors.get_slice(name)[first : first + 10].tobytes())

    def batch(self, name: str, first: int) -> int:
        return zlib.crc32(self._maps[name][first : first + 5000])

    def read(self, name: str, size: int) -> int:
        """From where the last one, of whichever process, has stopped."""
        return zlib.crc32(self._files[name].read(size))

    def seek(self, name: str, to: int) -> int:
        return int(self._files[name].seek(to))

    def at(self, name: str, offset: int) -> int:
        return zlib.crc32(os.pread(self._files[name].fileno(), 5000, offset))

    def end(self, name: str) -> tuple[int, bytes]:
        size = os.fstat(self._files[name].fileno()).st_size
        return size, os.pread(self._files[name].fileno(), 100, size - 100)

    # --- who writes ---

    def checkpoint(self, value: int) -> None:
        tensors = {name: numpy.full((300, 500), value, numpy.float32) for name in NAMES}
        save_file(tensors, self.root / "new.safetensors")
        (self.root / "new.safetensors").replace(self.root / TENSORS)

    def append(self, value: int) -> None:
        with (self.root / "index.log").open("a") as file:
            file.write(json.dumps({"new": value}) + "\n")

    def patch(self, name: str, at: int, value: int) -> None:
        numpy.memmap(self.root / name, numpy.uint8, "r+")[at : at + 9] = value

    def check(self) -> object:
        with safe_open(self.root / TENSORS, framework="np") as tensors:
            sums = {name: zlib.crc32(tensors.get_tensor(name).tobytes()) for name in NAMES}
        return sums, {name: zlib.crc32((self.root / name).read_bytes()) for name in FILES}


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    return make_stage(fill)


READS: tuple[Step, ...] = (
    *(("tensor", "a"), ("rows", "b", 30), ("batch", "tokens.bin", 9000), ("batch", "small.bin", 0)),
    *(("batch", "index.log", 4000), ("read", "tokens.bin", 700_000), ("read", "small.bin", 900)),
    *(("read", "index.log", 500_000), ("seek", "tokens.bin", 100), ("seek", "index.log", 0)),
    *(("at", "tokens.bin", 40_000), ("at", "small.bin", 0), ("end", "index.log")),
)
#: Nothing stores into the weights in place: test_memmap.py has that.
WRITES: tuple[Step, ...] = (
    *(("checkpoint", 1), ("checkpoint", 2), ("append", 1), ("append", 2)),
    *(("patch", "small.bin", 100, 1), ("patch", "small.bin", 0, 2), ("patch", "index.log", 50, 3)),
)


def test_workers_share_what_was_open_at_the_fork(stage: Stage) -> None:
    with stage.turns() as turns:
        turns.gives(None, "loader", "open")
        for number in range(2):
            turns.gives(None, "loader", "fork", number)
        for write in (None, *WRITES):
            if write is not None:
                turns.gives(None, "writer", *write)
            for number, read in enumerate(READS):
                turns.do("loader", "ask", number % 2, *read)
            turns.do("loader", *READS[0])
        turns.do("checker", "check")


def plan(chance: random.Random) -> tuple[str, list[Step]]:
    """Files are opened and workers forked; then they read while another process writes."""
    steps: list[Step] = [("loader", "open"), ("loader", "fork", 0)]
    for _ in range(chance.randint(20, 40)):
        kind = chance.choices(("ask", "self", "write", "fork", "open"), (10, 3, 5, 1, 1))[0]
        if kind == "ask":
            steps.append(("loader", "ask", chance.randrange(2), *chance.choice(READS)))
        elif kind == "self":
            steps.append(("loader", *chance.choice(READS)))
        elif kind == "write":
            steps.append((chance.choice(["writer", "loader"]), *chance.choice(WRITES)))
        else:
            steps.append(("loader", kind, *((1,) if kind == "fork" else ())))
    return "", steps


def play(turns: Turns, example: tuple[str, list[Step]]) -> None:
    turns.play(example[1])
    turns.do("checker", "check")


def test_workers_and_writers_take_turns_as_on_xfs(stage: Stage) -> None:
    explore(10, interleavings(plan), stage.playing(play))
