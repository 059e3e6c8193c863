"""Cloning and copying on all cores: a few forked processes that share out the chunks of a scan.

Processes, not threads: the work is many short system calls, and handing the interpreter lock around
costs more than they do. For 10,000 files on two cores (cp -a --reflink=always: 0.40 s) one process
takes 0.46 s, two threads between 0.35 and 0.59 s, two processes 0.28 s.

The children inherit the scan and the descriptors, are told numbers of batches over a socket each,
and answer each number when it is done. They never outlive their parent by more than one batch:
the end of the socket is their order to leave. They ignore SIGINT and SIGTERM, which a terminal or
a service manager sends to the whole group; the parent decides what these mean.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import signal
import socket
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Generic, NoReturn, TypeVar

from cowfs.system.errors import SystemFailure
from cowfs.trees.cloning import Chunk, Cloner
from cowfs.trees.links import Links
from cowfs.trees.scan import SourceChanged

# Below this number of files for each, a process costs more than it gains.
_FILES_PER_WORKER = 500
_MOST_WORKERS = 8
# Files that are given to a worker at once; a directory counts like a few files.
BATCH = 256
_DIRECTORY_COST = 2
_AHEAD = 2  # batches that a worker has been given and not answered: it never waits for the parent
_MESSAGE = 65536  # bytes, more than a message has

_NUMBER = struct.Struct("<q")  # of a batch; as an answer the errno of a failure, with a path behind
_DONE = 0
_CHANGED = -1
_IGNORED = (signal.SIGINT, signal.SIGTERM)

_Piece = TypeVar("_Piece")

Worker = Callable[[int], "contextlib.AbstractContextManager[Callable[[_Piece], None]]"]


def clone_all(
    source_fd: int,
    tree_fd: int,
    pieces: list[Chunk],
    done: Callable[[Chunk], None],
    links: Links | None = None,
) -> None:
    """Clone every chunk, as a `Cloner` does; `done` hears of each from this process.

    SourceChanged; OSError with the entry's path; SystemFailure when a worker dies.
    """

    @contextlib.contextmanager
    def worker(umask: int) -> Iterator[Callable[[Chunk], None]]:
        with contextlib.closing(Cloner(source_fd, tree_fd, umask, links)) as cloner:
            yield cloner.clone_chunk

    do_all(worth_starting(sum(piece.work() for piece in pieces)), worker, pieces, done, cost_of)


def worth_starting(files: int) -> int:
    """How many processes are best for this many small files; 0 and 1 mean none but this one."""
    return min(files // _FILES_PER_WORKER, len(os.sched_getaffinity(0)), _MOST_WORKERS)


def do_all(
    count: int,
    worker: Worker[_Piece],
    pieces: list[_Piece],
    done: Callable[[_Piece], None],
    cost: Callable[[_Piece], int],
) -> None:
    """Do every piece in `count` processes; `done` hears of each from this process.

    `worker` is called once in each process that works, with the umask there; what its context gives
    does a piece. `cost` says how many of them are given away at once: as many as cost BATCH
    together. Fewer than two processes means none but this one. Errors as in `clone_all`.
    """
    if count < 2:
        with worker(0o777) as do:
            for piece in pieces:
                do(piece)
                done(piece)
        return
    batches = list(_batches(pieces, cost))
    with _Workers(count, worker, batches) as workers:
        for number in workers.run():
            for piece in batches[number]:
                done(piece)


def cost_of(piece: Chunk) -> int:
    """What a chunk of small files costs, in files."""
    return piece.work() + _DIRECTORY_COST


def _batches(pieces: list[_Piece], cost: Callable[[_Piece], int]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    sum_ = 0
    for piece in pieces:
        batch.append(piece)
        sum_ += cost(piece)
        if sum_ >= BATCH:
            yield batch
            batch, sum_ = [], 0
    if batch:
        yield batch


class _Workers(Generic[_Piece]):
    """The processes. Owns their sockets and ends them."""

    def __init__(
        self,
        count: int,
        worker: Worker[_Piece],
        batches: list[list[_Piece]],
    ) -> None:
        self._batches = batches
        self._worker = worker
        self._sockets: dict[int, socket.socket] = {}
        self._pids: list[int] = []
        try:
            for _ in range(count):
                self._start()
        except OSError as error:
            self._end()
            raise SystemFailure(
                f"cannot start a process to clone files: {error.strerror}"
            ) from None
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> _Workers[_Piece]:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(self) -> Iterator[int]:
        """The number of each batch, in the order in which they are done."""
        todo = iter(range(len(self._batches)))
        given: dict[int, list[int]] = {fd: [] for fd in self._sockets}
        poll = select.poll()
        for fd in self._sockets:
            poll.register(fd, select.POLLIN)
            for _ in range(_AHEAD):
                self._give(fd, todo, given)
        while any(given.values()):
            for fd, _ in poll.poll():
                self._take(fd)
                number = given[fd].pop(0)
                self._give(fd, todo, given)
                yield number

    def _give(self, fd: int, todo: Iterator[int], given: dict[int, list[int]]) -> None:
        number = next(todo, None)
        if number is not None:
            with contextlib.suppress(BrokenPipeError):  # it is dead, and _take says so
                self._sockets[fd].send(_NUMBER.pack(number))
            given[fd].append(number)

    def _take(self, fd: int) -> None:
        try:
            message = self._sockets[fd].recv(_MESSAGE)
        except ConnectionResetError:
            message = b""
        if not message:
            raise SystemFailure(
                "a process that cloned files was killed, perhaps for lack of memory: see dmesg"
            )
        number = _NUMBER.unpack_from(message)[0]
        path = os.fsdecode(message[_NUMBER.size :])
        if number == _CHANGED:
            raise SourceChanged(path)
        if number != _DONE:
            raise OSError(number, os.strerror(number), path)

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
        try:
            with theirs, warnings.catch_warnings():
                # Python warns of fork() beside threads. The child takes no lock that a thread may
                # hold: it makes system calls and leaves.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
                if pid == 0:
                    self._live(ours, theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._sockets[ours.fileno()] = ours
        self._pids.append(pid)

    def _live(self, ours: socket.socket, theirs: socket.socket) -> NoReturn:
        """The child: it never leaves this function."""
        status = 1
        try:
            for number in _IGNORED:
                signal.signal(number, signal.SIG_IGN)
            for other in (ours, *self._sockets.values()):
                other.close()
            gc.disable()  # it would touch, and so copy, the pages that are shared with the parent
            os.umask(0)
            self._work(theirs)
            status = 0
        except BaseException:
            # Nobody above: the parent only sees that it has ended.
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)

    def _work(self, sock: socket.socket) -> None:
        """Do the batches whose numbers come, until the parent has no more to give."""
        with self._worker(0) as do:
            self._answer(sock, do)

    def _answer(self, sock: socket.socket, do: Callable[[_Piece], None]) -> None:
        while True:
            try:
                message = sock.recv(_MESSAGE)
            except ConnectionResetError:  # the parent has gone without reading the last answer
                return
            if not message:
                return
            path = ""
            try:
                for piece in self._batches[_NUMBER.unpack(message)[0]]:
                    do(piece)
                answer = _DONE
            except SourceChanged as change:
                answer, path = _CHANGED, change.path
            except OSError as error:
                answer, path = error.errno or errno.EIO, os.fsdecode(error.filename or "")
            try:
                sock.send(_NUMBER.pack(answer) + os.fsencode(path))
            except OSError:
                return  # the parent has gone

    def _end(self) -> None:
        for sock in self._sockets.values():
            sock.close()
        for pid in self._pids:
            with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored: nothing is left
                os.waitpid(pid, 0)
        self._sockets = {}
        self._pids = []
