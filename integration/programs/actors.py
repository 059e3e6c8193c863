"""Processes that do what they are told, one step at a time, and keep open what they have opened.

An actor serves one `Player`, whose methods are the steps: one process, since POSIX locks, mappings
and the tables of libraries belong to a process. Actors are forked by a nursery that has imported
the player's module before, since a play has many and importing a library takes longer than a play.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from integration import kernel

#: Seconds after which a step that has no answer fails the test: a hang, however busy the machine.
PATIENCE = 60.0
#: Of the actors. Threads do not live through a fork, and nothing asks the network.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class Outcome(NamedTuple):
    """What came of a step: it "gave" a value, "failed" with an error, or the process "ended"."""

    kind: str
    what: object

    def __str__(self) -> str:
        return f"{self.kind} {str(self.what)[:1000]}"


class Player:
    """What one process can do in *root*; the public methods of a subclass are the steps.

    They take and give plain data. What they raise is an outcome too.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def describe(self, error: Exception) -> str:
        """The error without what differs from one directory or process to another."""
        number = error.errno if isinstance(error, OSError) else None
        name = errno.errorcode.get(number or 0, "") or getattr(error, "sqlite_errorname", "")
        text = str(error).replace(str(self.root), "ROOT")
        return f"{type(error).__name__} {name}: {text}"


# --- the test's side ------------------------------------------------------------------------------


class Nursery:
    """Forks actors for the players of one module."""

    def __init__(self, module: str) -> None:
        self._socket, theirs = socket.socketpair()
        code = "from integration.programs.actors import nurse; nurse()"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=Path(__file__).parent.parent.parent,  # -c puts it in front of the path
                env={**os.environ, **_ENVIRONMENT},
            )

    def actor(self, root: Path) -> Actor:
        """A new process with the module's `Player` of *root*."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._socket, [os.fsencode(root)], [theirs.fileno()])
        self._socket.settimeout(PATIENCE)
        return Actor(int(self._socket.recv(100)), Connection(ours.detach()))

    def close(self) -> None:
        self._socket.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise


class Actor:
    """A process that the nursery has forked, with what it has started: one process group."""

    def __init__(self, pid: int, connection: Connection) -> None:
        self.pid = pid
        self._connection = connection
        self._pidfd = os.pidfd_open(pid)
        self.alive = True

    def begin(self, action: str, args: tuple[Any, ...]) -> None:
        """Let it start a step; `finish` says what came of it."""
        try:
            self._connection.send((action, args))
        except BrokenPipeError:
            pass  # it has ended: `finish` will say so

    def finish(self) -> Outcome:
        if not self._connection.poll(PATIENCE):
            self.kill()
            raise AssertionError(f"an actor has not answered for {PATIENCE:g} s")
        try:
            kind, what = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self.kill()
            return Outcome("ended", None)
        return Outcome(kind, what)

    def kill(self) -> None:
        """End it and what it has started, in the middle of whatever it does."""
        if not self.alive:
            return
        self.alive = False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        try:
            if not kernel.wait_for_end(self.pid, 5):
                # It waits for a mount that does not answer, without regard to signals.
                kernel.abort_connections()
                assert kernel.wait_for_end(self.pid, 10), f"the actor {self.pid} cannot be killed"
        finally:
            os.close(self._pidfd)
            self._connection.close()


# --- the actor's side -----------------------------------------------------------------------------


def nurse() -> None:
    """The process: fork an actor for each descriptor that comes, until there will be no more."""
    module = importlib.import_module(sys.argv[1])
    listener = socket.socket(fileno=int(sys.argv[2]))
    while True:
        root, descriptors, _flags, _address = socket.recv_fds(listener, 4096, 1)
        if not root:
            return
        pid = os.fork()
        if pid == 0:
            os.setsid()
            listener.close()
            _act(module.Player(Path(os.fsdecode(root))), Connection(descriptors[0]))
        os.close(descriptors[0])
        listener.send(b"%d" % pid)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass  # the test watches them by descriptors that it has opened before


def _act(player: Player, connection: Connection) -> None:
    while True:
        try:
            action, args = connection.recv()
        except (EOFError, ConnectionResetError):
            os.killpg(0, signal.SIGKILL)  # with what the player has started
        try:
            outcome = ("gave", getattr(player, action)(*args))
        except Exception as error:
            outcome = ("failed", player.describe(error))
        connection.send(outcome)
