"""The attendant: the small process that puts a copy away after overlayfs has served it.

The kernel serves the copy, and needs nobody for it. The attendant holds the copy's lock as long as
that lasts, and a watch that tells when the filesystem has ended: not when it is unmounted here, but
when no namespace has it mounted any more and its last file is closed. If it is killed the copy goes
on. Others are kept from the upper layer then because the kernel says that it is in use
(overlayfs.py), and the next command that wants the copy puts it away.

    python -m cowfs.attendant watch [background] NAME=FD ...
                                                    wait, and act on signals as a daemon would
    python -m cowfs.attendant unmount SECONDS DETACH NAME=FD ...
    python -m cowfs.attendant ended NAME=FD ...     put the copy away

The first becomes the last by execve(2): it imports next to nothing while it waits, and what its
installation holds by then does the rest as a whole, also when that was replaced in place. Under
systemd the descriptors are in the service manager's store too: a killed attendant is started again
with them, and a watch tells of an end that came in between.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from typing import NoReturn

from cowfs.mount import oom
from cowfs.mount.conversation import FORWARDED, LEAVE, LOCK, ORDER, PERSISTENCE
from cowfs.mount.logline import log
from cowfs.mount.servicemanager import Systemd
from cowfs.system import inherited, remedy

TYPE_CHECKING = False  # as mypy understands it: see conversation.py
if TYPE_CHECKING:
    from typing import Any

ATTENDANT = ("-I", "-m", "cowfs.attendant")
WATCH = "watch"
# Said to one that nobody supervises.
BACKGROUND = "background"

# How long it waits before it asks for an unmount again, seconds.
_PAUSE = 0.2


def command(word: str, held: dict[str, int], *more: str) -> list[str]:
    """What to run, with these descriptors, which are made inheritable."""
    for fd in held.values():
        os.set_inheritable(fd, True)
    return [sys.executable, *ATTENDANT, word, *more, *(f"{name}={fd}" for name, fd in held.items())]


def _watch(held: dict[str, int]) -> NoReturn:
    """Wait for the end of the filesystem, then put the copy away."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    for number in (*FORWARDED, LEAVE):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who unmounts is waited for by nobody
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    oom.protect()
    notify = Systemd()
    for name in held:
        notify.change(name)
    notify.finish(held)
    notify.say("READY=1\nSTATUS=Mounted, served by the kernel's overlayfs")
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    poll.register(held[WATCH], select.POLLIN)
    interrupted = 0
    while True:
        due = notify.due()  # what systemd has not taken yet
        wait = None if due is None else max(0.0, due - time.monotonic()) * 1000 + 1
        ready = [fd for fd, _event in poll.poll(wait)]
        notify.settle(held)
        if not ready:
            continue
        if held[WATCH] in ready:
            break
        for signalled in os.read(reading, 64):
            if signalled == LEAVE and notify.stores:
                log("restarted: the mount stays")
                sys.exit(0)
            notify.say("STOPPING=1")
            interrupted += signalled == signal.SIGINT
            patience = PERSISTENCE if signalled in (signal.SIGTERM, LEAVE) else 0.0
            # It does not get the lock, which must be free once this process has put the copy away.
            order = {ORDER: held[ORDER]}
            words = command("unmount", order, str(patience), str(int(interrupted > 1)))
            os.posix_spawn(words[0], words, os.environ, setpgroup=0)
    notify.finish({})  # or the next start would go on with what is gone
    # What comes now is quick, and must not be interrupted.
    for number in FORWARDED:
        signal.signal(number, signal.SIG_IGN)
    words = command("ended", held)
    os.execv(words[0], words)  # noqa: S606


def _unmount(held: dict[str, int], patience: float, *, detach: bool) -> int:
    """Unmount it as soon as nobody uses it, for at most *patience* seconds."""
    import errno

    from cowfs.mount.mountpoint import Mountpoint
    from cowfs.system import syscalls

    order = read_order(held)
    mountpoint = order["record"]["mountpoint"]
    deadline = time.monotonic() + patience
    while True:
        try:
            place = Mountpoint(mountpoint)
            place.found(order["mount_id"])
            place.unmount(syscalls.MNT_DETACH if detach else 0)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return 0  # somebody else has unmounted it
            if error.errno != errno.EBUSY:
                log(f"cannot unmount {mountpoint}: {error.strerror}")
                return 1
        else:
            return 0
        if time.monotonic() >= deadline:
            log(
                f"{mountpoint} is in use and stays mounted; end what uses it "
                f"({remedy.command('fuser -vm', mountpoint)}) and ask again"
            )
            return 1
        time.sleep(_PAUSE)


def _put_away(held: dict[str, int]) -> int:
    from contextlib import closing

    from cowfs.store import runtime
    from cowfs.store.store import Copy, Store

    record = read_order(held)["record"]
    with closing(Store.open(record["store"])) as store:
        copy = Copy.adopt(store, record["copy"], held[LOCK])
        runtime.remove(record["device"])
        has_ended = copy.put_away()
    what = "kept" if copy.persistent else "discarded"
    if not has_ended:
        what = "put away by the next command that needs it: overlayfs does not let go of it"
    log(f"{record['mountpoint']} is unmounted, and the copy {copy.name} is {what}")
    return 0


def write_order(mount_id: int, record: dict[str, Any]) -> int:
    """A new descriptor of what an attendant is to know: its mount, and the record of that."""
    import json

    fd = os.memfd_create("cowfs-order", os.MFD_CLOEXEC)
    os.write(fd, json.dumps({"mount_id": mount_id, "record": record}).encode("ascii"))
    return fd


def read_order(held: dict[str, int]) -> dict[str, Any]:
    """What write_order() made."""
    import json

    order: dict[str, Any] = json.loads(os.pread(held[ORDER], os.fstat(held[ORDER]).st_size, 0))
    return order


def main(arguments: list[str]) -> int:
    """The process that `cowfs mount` starts, or becomes."""
    word, *rest = arguments
    held = {}
    for argument in rest:
        name, equals, fd = argument.rpartition("=")
        if equals:
            held[name] = int(fd)
            os.set_inheritable(held[name], False)
    os.chdir("/")
    if word == "watch":
        inherited.drop_limits()
        inherited.drop_signals()
        if BACKGROUND in rest:
            inherited.drop_scheduling()
        _watch(held)
    if word == "unmount":
        return _unmount(held, float(rest[0]), detach=bool(int(rest[1])))
    return _put_away(held)
