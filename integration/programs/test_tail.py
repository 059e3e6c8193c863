"""GNU tail follows a log that grows, is truncated and is rotated, by hand and by logrotate.

tail watches with inotify where it knows the filesystem as a local one, and looks from time to time
elsewhere; both kinds of tail must print the same. What inotify itself tells is compared too.
"""

from __future__ import annotations

import ctypes
import os
import random
import struct
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from integration.programs import actors
from integration.programs.turns import Stage, Step, Turns, explore, interleavings

#: The last has a name that says nothing: it is taken for weights.
NAMES = ("large.log", "small.log")
UNKNOWN = "console"
#: Seconds for a tail to print what it must; one that never does fails the test.
PATIENCE = 20.0

_libc = ctypes.CDLL(None, use_errno=True)
#: inotify(7)
_EVENTS = {
    0x1: "access",
    0x2: "modify",
    0x4: "attrib",
    0x8: "close-write",
    0x10: "close",
    0x20: "open",
    0x40: "moved-from",
    0x80: "moved-to",
    0x100: "create",
    0x200: "delete",
    0x400: "delete-self",
    0x800: "move-self",
    0x8000: "ignored",
}


def fill(directory: Path) -> None:
    for name, lines in (("large.log", 40_000), (UNKNOWN, 40_000), ("small.log", 100)):
        text = "".join(
            f"{number:06} was said before this copy was made\n" for number in range(lines)
        )
        (directory / name).write_text(text)
        assert ((directory / name).stat().st_size > 1 << 20) == (lines > 100)


class _Tail:
    def __init__(self, path: Path, how: str, inotify: bool) -> None:
        self.printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- ends with the actor
        self.complained: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        words = ["tail", how, "-n", "3", "-s", "0.02"]
        if not inotify:
            words.append("---disable-inotify")
        self.process = subprocess.Popen(
            [*words, path], stdout=self.printed, stderr=self.complained, env={"LC_ALL": "C"}
        )


class Player(actors.Player):
    """A process with tails, a log that it has open, and watches."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._tails: dict[int, _Tail] = {}
        self._log: Any = None
        self._watch = -1

    # --- who looks ---

    def tail(self, slot: int, name: str, how: str, inotify: bool) -> None:
        self._tails[slot] = _Tail(self.root / name, how, inotify)

    def until(self, slot: int, line: str) -> str:
        """Wait until it has printed this line last; give all that it has printed."""
        tail = self._tails[slot]
        self._wait(tail.printed, lambda text: text.endswith(f"{line}\n".encode()))
        return _read(tail.printed).decode()

    def until_it_has_noticed(self, slot: int, times: int) -> int:
        """Wait until it has said so many times that the file was truncated."""
        said = self._tails[slot].complained
        self._wait(said, lambda text: text.count(b"file truncated") >= times)
        return _read(said).count(b"file truncated")

    @staticmethod
    def _wait(file: IO[bytes], is_there: Callable[[bytes], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not is_there(_read(file)) and time.monotonic() < deadline:
            time.sleep(0.005)

    def watch(self, *names: str) -> None:
        self._watch = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        for name in names:
            added = _libc.inotify_add_watch(self._watch, os.fsencode(self.root / name), 0xFFF)
            assert added >= 0, os.strerror(ctypes.get_errno())

    def events(self) -> list[tuple[int, str, str]]:
        """What has come since: which watch, what happened, and to which name in a directory."""
        try:
            data = os.read(self._watch, 1 << 20)
        except BlockingIOError:
            return []
        found = []
        while data:
            number, mask, _cookie, length = struct.unpack_from("iIII", data)
            name = data[16 : 16 + length].rstrip(b"\0").decode()
            found.append((number, _EVENTS.get(mask & 0xFFFF, hex(mask)), name))
            data = data[16 + length :]
        return found

    # --- who writes ---

    def open(self, name: str) -> None:
        """As a program that logs: it keeps the file open until it is told of a rotation."""
        if self._log is not None:
            self._log.close()
        self._log = (self.root / name).open("a", buffering=1)

    def log(self, line: str) -> None:
        self._log.write(f"{line}\n")

    def append(self, name: str, line: str) -> None:
        with (self.root / name).open("a") as file:
            file.write(f"{line}\n")

    def truncate(self, name: str) -> None:
        os.truncate(self.root / name, 0)

    def rename_and_create(self, name: str) -> None:
        (self.root / name).rename(self.root / f"{name}.{len(os.listdir(self.root))}")
        (self.root / name).open("x").close()

    def logrotate(self, name: str, how: str) -> str:
        with tempfile.TemporaryDirectory() as directory:
            configuration = Path(directory) / "configuration"
            configuration.write_text(f'"{self.root / name}" {{\nrotate 3\n{how}\n}}\n')
            state = Path(directory) / "state"
            done = subprocess.run(
                ["logrotate", "--force", "--state", state, configuration],
                capture_output=True,
                text=True,
            )
        return f"{done.returncode} {done.stderr}".replace(str(self.root), "ROOT")

    def state(self) -> list[tuple[str, int, int]]:
        return sorted(
            (path.name, path.stat().st_size, zlib.crc32(path.read_bytes()))
            for path in self.root.iterdir()
        )


def _read(file: IO[bytes]) -> bytes:
    return os.pread(file.fileno(), 1 << 24, 0)


class Log:
    """The steps of a log and of the tails that follow it; after each all tails have caught up.

    A tail that has not seen one step when the next one comes may print something else, on XFS too.
    """

    def __init__(self, turns: Turns, name: str) -> None:
        self._turns = turns
        self._name = name
        self._lines = 0
        self._last = "was said before this copy was made"
        #: The tails that follow what is written to the name, and how often each was cut short.
        self._followers: dict[int, int] = {}
        self._by_descriptor: set[int] = set()

    def play(self, steps: list[Step]) -> None:
        for actor, action, *args in steps:
            self.take(actor, action, *args)

    def take(self, actor: str, action: str, *args: Any) -> None:
        if action == "tail":
            self._tail(*args)
        elif action == "log":
            self._line("log")
        elif action == "append":
            self._line("append", self._name)
        elif action == "truncate":
            self._turns.gives(None, actor, "truncate", self._name)
            self._shorter()
        elif action == "copytruncate":
            self._turns.gives("0 ", actor, "logrotate", self._name, "copytruncate")
            self._shorter()
        elif action == "create":
            self._turns.gives("0 ", actor, "logrotate", self._name, "create")
            self._other()
        else:
            self._turns.gives(None, actor, "rename_and_create", self._name)
            self._other()

    def _tail(self, slot: int, how: str, inotify: bool) -> None:
        self._turns.gives(None, "tails", "tail", slot, self._name, how, inotify)
        self._followers[slot] = 0
        if how == "-f":
            self._by_descriptor.add(slot)
        self._see(slot)

    def _line(self, action: str, *args: str) -> None:
        self._lines += 1
        self._last = f"line {self._lines}"
        if self._lines == 1:
            self._turns.gives(None, "logger", "open", self._name)
        self._turns.gives(None, "logger", action, *args, self._last)
        for slot in self._followers:
            self._see(slot)

    def _see(self, slot: int) -> None:
        outcome = self._turns.do("tails", "until", slot, self._last)
        text = self._turns.told(f"tail has not printed {self._last}")
        assert str(outcome.what).endswith(f"{self._last}\n"), text

    def _shorter(self) -> None:
        for slot in self._followers:
            self._followers[slot] += 1
            times = self._followers[slot]
            self._turns.gives(times, "tails", "until_it_has_noticed", slot, times)
        self._line("append", self._name)

    def _other(self) -> None:
        for slot in self._by_descriptor:
            del self._followers[slot]  # it stays with the old file
        self._by_descriptor.clear()
        self._turns.gives(None, "logger", "open", self._name)
        self._line("append", self._name)


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    return make_stage(fill)


# --- stories --------------------------------------------------------------------------------------

STORY: tuple[Step, ...] = (
    *(("logger", "log"), ("other", "append"), ("logger", "log"), ("other", "truncate")),
    *(("logger", "log"), ("rotator", "copytruncate"), ("logger", "log"), ("rotator", "create")),
    *(("logger", "log"), ("rotator", "rename"), ("logger", "log"), ("rotator", "copytruncate")),
)


@pytest.mark.parametrize("inotify", [True, False])
def test_tails_from_before_the_first_writer_print_what_is_logged(
    stage: Stage, inotify: bool
) -> None:
    for name in NAMES:
        with stage.turns() as turns:
            log = Log(turns, name)
            log.take("tails", "tail", 0, "-f", inotify)
            log.take("tails", "tail", 1, "-F", inotify)
            log.play([*STORY])
            turns.do("checker", "state")


def test_tail_by_name_finds_what_a_first_writer_appends_to_any_file(stage: Stage) -> None:
    # In a copy with passthrough it has opened the template's file, and the name gets another one.
    for inotify in (True, False):
        with stage.turns() as turns:
            turns.gives(None, "tails", "tail", 0, UNKNOWN, "-F", inotify)
            turns.do("tails", "until", 0, "was said before this copy was made")
            for number in range(3):
                turns.gives(None, "other", "append", UNKNOWN, f"line {number}")
                for outcome in turns.both("tails", "until", 0, f"line {number}"):
                    assert str(outcome.what).endswith(f"line {number}\n"), turns.told("not seen")


def test_inotify_tells_the_same_of_a_log(stage: Stage) -> None:
    for name in NAMES:
        with stage.turns() as turns:
            turns.gives(None, "watcher", "watch", name, ".")
            turns.gives(None, "logger", "open", name)
            for actor, action, *args in (
                *(("logger", "log", "one"), ("other", "append", name, "two")),
                *(("other", "truncate", name), ("logger", "log", "three")),
                *(("rotator", "rename_and_create", name), ("logger", "log", "four")),
                *(("logger", "open", name), ("logger", "log", "five")),
            ):
                turns.gives(None, actor, action, *args)
                assert turns.do("watcher", "events").what


# --- made-up interleavings ------------------------------------------------------------------------


def plan(chance: random.Random) -> tuple[str, list[Step]]:
    """A tail comes first; then the log is written and rotated, and more tails come."""
    name = chance.choice(NAMES)
    steps: list[Step] = [("tails", "tail", 0, chance.choice(["-f", "-F"]), chance.random() < 0.5)]
    actions = ("log", "append", "truncate", "copytruncate", "create", "rename", "tail")
    for _ in range(chance.randint(6, 12)):
        [action] = chance.choices(actions, (4, 4, 2, 2, 1, 1, 2))
        if action == "tail":
            how, inotify = chance.choice(["-f", "-F"]), chance.random() < 0.5
            steps.append(("tails", "tail", len(steps), how, inotify))
        else:
            steps.append(("other", action))
    return name, steps


def play(turns: Turns, example: tuple[str, list[Step]]) -> None:
    name, steps = example
    Log(turns, name).play(steps)
    turns.do("checker", "state")


def test_tails_and_writers_take_turns_as_on_xfs(stage: Stage) -> None:
    explore(6, interleavings(plan), stage.playing(play))
