"""From `cowfs mount` to a mount that answers: the launching side.

The order of the steps is what makes a mount quick. The keeper is started as soon as the arguments
make sense, and at once starts the daemon, which imports pyfuse3 and trio (the longest single thing
of a mount) on one core while this process walks and seals the source on another. What they are to
serve follows over a socket; see conversation.py.

Until the keeper has said "ready" everything can be undone, and is, whatever happens: the launcher
keeps its own handle of the copy's lock, so that no one else can take the copy while it cleans up.
SIGINT and SIGTERM are noted at any time, but act only where the launcher waits for something long.

In the foreground the launcher becomes the keeper itself (execve(2)), so that a service manager sees
one process from the beginning. If it has got descriptors back from that (sd_listen_fds(3)), a mount
lives in them already, and nothing is prepared.

Where the kernel's overlayfs is to serve the copy (engine.py) there is no daemon: the launcher
mounts it itself, and in the place of a keeper is an attendant (attendant.py).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, cast

from cowfs.mount import attendant, engine, forkerlink, origin, preflight, privileges, scope
from cowfs.mount.config import Config
from cowfs.mount.conversation import (
    DEVICE,
    FORWARDED,
    KEEPER,
    LEAVE,
    LOCK,
    ORDER,
    receive_answer,
    send_order,
)
from cowfs.mount.options import Options
from cowfs.store import names
from cowfs.system import inherited, mountinfo, remedy
from cowfs.system.errors import CowfsError, InternalError, MountFailure, SystemFailure
from cowfs.system.interrupts import SIGNALS, Interrupts

if TYPE_CHECKING:
    from cowfs.mount.forkerlink import Asked
    from cowfs.mount.overlaymount import OverlayMount
    from cowfs.store.store import Copy, Store, Template
    from cowfs.trees.cloning import Progress

ProgressFactory = Callable[[], "contextlib.AbstractContextManager[Progress | None]"]

KEEPER_COMMAND = (sys.executable, *KEEPER)

# How long keeper and daemon may take to leave once their launcher has given up, before they are
# told so by signals.
GIVE_UP_SECONDS = 10.0


class Keeper:
    """A keeper that waits to be told what to serve. Owns the socket, and the process.

    It is our child, or forked by the forker (forker.py) and known by a pidfd; until that has
    answered there is none yet.
    """

    def __init__(self, sock: socket.socket, pid: int, asked: Asked | None = None) -> None:
        self.pid = pid
        self._pidfd: int | None = None
        self._asked = asked
        self._sock = sock
        #: The pid of a forker that was started for it.
        self.forker = None if asked is None else asked.forker

    @classmethod
    def start(cls, *, automounted: bool = False) -> Keeper:
        """Start it. SystemFailure when there is no process to be had.

        It has a session of its own, unless the mountpoint is an automounter's: until the mount is
        made, only the automounter's process group gets past it, so the keeper leaves that later.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            if not automounted:
                asked = forkerlink.ask(theirs.fileno(), inherited.environment(foreground=False))
                if asked is not None:
                    return cls(ours, 0, asked)
            try:
                return cls(ours, _spawn_keeper(theirs, automounted=automounted))
            except BaseException:
                ours.close()
                raise

    def arrive(self) -> None:
        """See that there is one: what was asked for, or else what we start. SystemFailure."""
        if self._asked is None or self._is_forked():
            return
        self._sock.close()
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self.pid = _spawn_keeper(theirs)

    def serve(self, config: Config) -> dict[str, Any]:
        """Tell it what to serve, wait until the mount answers. CowfsError if it refuses or dies."""
        try:
            send_order(self._sock, config.to_json(), config.lock_fd)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it is gone, or going with a word of why
        answer = receive_answer(self._sock)
        if answer is None:
            end = self._reap(GIVE_UP_SECONDS) or "it closed its socket and did not end"
            raise InternalError(
                f"the keeper died before the mount was ready ({end}): what it said is above; "
                f"{remedy.command('cowfs doctor')} tells what this machine lacks"
            )
        if answer.get("ready"):
            self._sock.close()
            return answer
        raise _failure(
            str(answer.get("error", "the mount was refused without a reason")),
            int(answer.get("exit_code", MountFailure.exit_code)),
        )

    def _is_forked(self) -> bool:
        """Wait for the one that was asked for."""
        assert self._asked is not None
        forked = self._asked.answer()
        self._asked = None
        if forked is None:
            return False
        self.pid, self._pidfd = forked
        return True

    def dismiss(self) -> None:
        """Tell it that there is nothing to serve, and wait for its last word, if any."""
        if self._asked is not None:
            self._is_forked()
        with contextlib.suppress(OSError, ValueError), self._sock:
            self._sock.shutdown(socket.SHUT_WR)
            self._sock.settimeout(GIVE_UP_SECONDS)
            receive_answer(self._sock)

    def end(self) -> None:
        """Wait until it has left, and see to it that it does."""
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if not self.pid:
                return  # none was forked, or none is left of what was asked for
            if number is not None:
                with contextlib.suppress(ProcessLookupError):
                    if self._pidfd is None:
                        os.kill(self.pid, number)
                    else:
                        signal.pidfd_send_signal(self._pidfd, number)
            if self._reap(GIVE_UP_SECONDS) is not None:
                return

    def _reap(self, seconds: float) -> str | None:
        """How it ended, as words; None when it has not within this time."""
        if self._pidfd is not None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            return "nobody knows how" if poll.poll(seconds * 1000) else None
        deadline = time.monotonic() + seconds
        pause = 0.001
        while True:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                return "its end was not recorded"  # whoever called us has SIGCHLD ignored
            if pid:
                code = os.waitstatus_to_exitcode(status)
                return f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
            if time.monotonic() >= deadline:
                return None
            time.sleep(pause)
            pause = min(2 * pause, 0.05)


def _spawn_keeper(sock: socket.socket, *, automounted: bool = False) -> int:
    """Start a keeper of our own that listens to this socket; its pid. SystemFailure."""
    sock.set_inheritable(True)
    command = [*KEEPER_COMMAND, "launcher", str(sock.fileno())]
    try:
        # Not the subprocess module: importing it takes longer than the whole of this.
        return os.posix_spawn(
            command[0],
            command,
            inherited.environment(foreground=False),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                *((os.POSIX_SPAWN_CLOSE, fd) for fd in inherited.descriptors(sock.fileno())),
            ],
            setsid=not automounted,
            setsigmask=[],
            setsigdef=[*SIGNALS, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD],
        )
    except OSError as error:
        raise SystemFailure(
            f"cannot start the keeper {' '.join(command)}: {error.strerror}"
        ) from None


def go_on() -> None:
    """Go on with the mount that a service manager has kept for us; return if there is none.

    Before anything that can be refused, such as a wrong option: if this process ended, so would the
    mount, whose users have nothing to do with what the configuration says by now.
    """
    held = _kept_by_systemd()
    if _is_attended(held):
        from cowfs.mount import overlaymount

        overlaymount.go_on(held)
        _become(attendant.command("watch", held), held)
    if _is_mounted(held):
        _become_keeper(held)
    for fd in held.values():
        os.close(fd)


def mount(
    source: str,
    mountpoint: str,
    options: Options,
    *,
    foreground: bool,
    warn: Callable[[str], None],
    progress: ProgressFactory,
    pretend: bool = False,
) -> int:
    """Copy source and mount the copy; 0 once the mount answers, with foreground once it is
    unmounted again. With pretend everything is checked, and nothing done.

    Paths as the user wrote them. progress() makes what shows the sealing, used only when there is
    something to seal. Every failure is a CowfsError, and leaves no mount, no new copy and no
    process behind.
    """
    preflight.require_privilege()
    inherited.drop_limits()
    if (largest := inherited.largest_file()) is not None:
        warn(
            f"nobody can make a file of {mountpoint} larger than {largest} bytes: this process has "
            "that limit (ulimit -H -f), and may not raise it without CAP_SYS_RESOURCE"
        )
    by_overlayfs = engine.prefers_overlayfs(options)
    if not by_overlayfs:
        preflight.require_fuse_device()
    missing = None
    found = origin.find(source, os.path.realpath(mountpoint), options)
    try:
        source = preflight.check_source(source) if found is None else found.source
    except preflight.SourceMissing as error:
        missing = error
        source = os.path.realpath(source)
    mountpoint = preflight.check_mountpoint(mountpoint)
    if options.store is not None:
        options = replace(options, store=os.path.realpath(options.store))
        preflight.check_apart_from_store(source, mountpoint, cast(str, options.store))
    if options.copy is not None:
        names.check_name(options.copy)
    if missing is not None and not _copy_exists(source, mountpoint, options):
        raise missing
    if pretend:
        store = _store_path(source, options.store) if found is None else found.store
        preflight.check_apart_from_store(source, mountpoint, store)
        return 0
    launch = _Launch(source, mountpoint, options, missing, warn, progress)
    launch.origin = found
    launch.by_overlayfs = by_overlayfs
    return launch.in_foreground() if foreground else launch.in_background()


class _Launch:
    """One try to mount, and what it has to take back when it fails."""

    def __init__(
        self,
        source: str,
        mountpoint: str,
        options: Options,
        source_missing: CowfsError | None,
        warn: Callable[[str], None],
        progress: ProgressFactory,
    ) -> None:
        self.source = source
        self.mountpoint = mountpoint
        self.options = options
        self.source_missing = source_missing
        self.warn = warn
        self.progress = progress
        self.interrupts = Interrupts("nothing is mounted")
        self.keeper: Keeper | None = None
        self.store: Store | None = None
        self.copy: Copy | None = None
        self.mounted_before = mountinfo.mounted_at(mountpoint)
        self.by_overlayfs = False
        # What it is a copy of, where that is a copy itself.
        self.origin: origin.Origin | None = None

    def in_background(self) -> int:
        with self.interrupts, self._undone_on_failure():
            if (overlay := self._mount_overlayfs()) is not None:
                pid = _start_attendant(overlay)
                self._write_record(overlay, pid)
                for fd in (overlay.held[ORDER], overlay.held[attendant.WATCH]):
                    os.close(fd)
                self._hand_over()
                self._leave_unit([pid])
                return 0
            before = self.mounted_before
            automounted = before is not None and before.fstype == "autofs"
            self.keeper = Keeper.start(automounted=automounted)
            config = self._prepare()
            self.keeper.arrive()
            with self.interrupts.allowed():
                daemon = int(self.keeper.serve(config)["pid"])
            pids, forker = [self.keeper.pid, daemon], self.keeper.forker
            self._hand_over()
        self._leave_unit(pids)
        if forker is not None:
            with contextlib.suppress(OSError):  # then it ends with the unit, and another is started
                scope.enter(f"cowfs-forker-{forker}.scope", "Forks keepers of cowfs", [forker])
        return 0

    def _leave_unit(self, pids: list[int]) -> None:
        """Under systemd: keeper and daemon do not end with the unit or session that we are in."""
        description = f"Copy of {self.source} on {self.mountpoint}"
        try:
            scope.enter(f"cowfs-{pids[0]}.scope", description, pids)
        except OSError as error:
            self.warn(
                f"{self.mountpoint} ends with the unit or session that mounted it: systemd made "
                f"no scope for it: {error.strerror or error}"
            )

    def in_foreground(self) -> int:
        with self._undone_on_failure(), self.interrupts:
            if (made := self._mount_overlayfs()) is not None:
                # They come to the attendant, which knows what to do.
                signal.pthread_sigmask(signal.SIG_BLOCK, [*FORWARDED, LEAVE])
                self.interrupts.check()
                self._write_record(made, os.getpid())
                self._empty_trash()
                _become(attendant.command("watch", made.held), made.held)
            config = self._prepare()
            assert self.copy is not None
            config = replace(config, foreground=True, fresh=self.copy.is_new)
            self._empty_trash()
            order = os.memfd_create("cowfs-order")
            os.write(order, config.to_json())
            _become_keeper({ORDER: order, LOCK: config.lock_fd})

    def _mount_overlayfs(self) -> OverlayMount | None:
        """The mount, if it is overlayfs that serves the copy; None for FUSE."""
        if not self.by_overlayfs:
            return None
        from cowfs.mount import overlaymount

        config = self._prepare()
        assert self.store is not None
        assert self.copy is not None
        try:
            with self.interrupts.allowed():
                return overlaymount.make(self.store, self.copy, config, self.progress)
        except overlaymount.Refused as refusal:
            if self.options.engine == "overlay":
                raise
            self.warn(f"{refusal}: FUSE serves it, without passthrough")
            preflight.require_fuse_device()
            return None

    def _write_record(self, overlay: OverlayMount, pid: int) -> None:
        from cowfs.mount import overlaymount

        try:
            overlaymount.write_record(overlay.record, pid)
        except OSError as error:
            raise SystemFailure(f"cannot write a record of the mount: {error.strerror}") from None

    def _prepare(self) -> Config:
        """Take the copy, with a template for it. What it took is in self as soon as it is ours."""
        if self.copy is None:
            self._take_copy()
        assert self.store is not None
        assert self.copy is not None
        return Config(
            source=self.source,
            mountpoint=self.mountpoint,
            store=self.store.path,
            copy=self.copy.name,
            lock_fd=self.copy.lock_fd,
            options=self.options,
        )

    def _take_copy(self) -> None:
        from cowfs.store.store import Store

        if self.origin is None:
            store = self.store = Store.for_source(self.source, self.options.store)
        else:
            store = self.store = Store.open(self.origin.store)
        _require_privileges(store)
        preflight.check_apart_from_store(self.source, self.mountpoint, os.path.realpath(store.path))
        if self.origin is None:
            self._take_copy_of_source(store)
        else:
            self.copy = store.acquire_copy_of(
                self.origin.name,
                self.options.copy,
                mountpoint=self.mountpoint,
                persistent=not self.options.ephemeral,
                progress=self._interruptible_progress,
                warn=self.warn,
            )
            self._compare_links(self.copy)
        if self.options.store is not None:
            store.remember(self.warn)
        self.interrupts.check()

    @contextlib.contextmanager
    def _interruptible_progress(self) -> Iterator[Progress | None]:
        with self.interrupts.allowed(), self.progress() as progress:
            yield progress

    def _take_copy_of_source(self, store: Store) -> None:
        from cowfs.store.seal import seal

        asked = False

        def prepare() -> Template:
            nonlocal asked
            asked = True
            if self.source_missing is not None:
                raise self.source_missing
            with self._interruptible_progress() as progress:
                return seal(
                    store,
                    self.source,
                    progress=progress,
                    warn=self.warn,
                    links=self.options.links,
                )

        self.copy = store.acquire(
            self.options.copy,
            self.source,
            mountpoint=self.mountpoint,
            persistent=not self.options.ephemeral,
            prepare=prepare,
            warn=self.warn,
        )
        if not asked:
            self._compare_links(self.copy)

    def _compare_links(self, copy: Copy) -> None:
        """Say so when a copy with changes has its links from a mount that wanted others."""
        wanted, made = self.options.links, copy.template.links
        if wanted == made or f"links={wanted}" not in self.options.given or self.store is None:
            return
        from cowfs.store.seal import fingerprint

        with contextlib.suppress(CowfsError):
            if fingerprint(self.store, copy.source, wanted) == copy.template.id:
                return  # the same for both
            self.warn(
                f"the copy {copy.name} has changes and stays as it was made, with links={made}: "
                "for another one choose another name with -o copy=NAME"
            )

    def _hand_over(self) -> None:
        """The mount answers: from now on the copy is the server's."""
        if self.copy is not None:
            self.copy.release()
        if self.store is not None:
            self._empty_trash()
            self.store.close()
        self.store = self.copy = self.keeper = None

    def _empty_trash(self) -> None:
        """What was found there, and what was put there, is removed while others use the mount."""
        from cowfs.store import emptying

        assert self.store is not None
        with contextlib.suppress(OSError):  # cowfs gc will
            emptying.start(self.store.trash_fd)

    @contextlib.contextmanager
    def _undone_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if self.keeper is not None:
                self.keeper.dismiss()
                self._remove_mount()
                self.keeper.end()
            if self.copy is not None:
                self._remove_mount()
                self._give_back(self.copy)
            if self.store is not None:
                self._empty_trash()
                self.store.close()
            raise

    def _remove_mount(self) -> None:
        """Detach a cowfs mount that has appeared at our mountpoint since we looked."""
        from cowfs.mount.mountpoint import Mountpoint
        from cowfs.store import runtime
        from cowfs.system import syscalls

        if self.copy is None:
            return
        now = mountinfo.mounted_at(self.mountpoint)
        before = self.mounted_before
        if now is None or not now.is_cowfs or (before and now.mount_id == before.mount_id):
            return
        record = runtime.of(now)
        if record is not None and record.copy != self.copy.name:
            return  # somebody else was quicker
        with contextlib.suppress(OSError):
            Mountpoint.of(now).unmount(syscalls.MNT_DETACH)

    def _give_back(self, copy: Copy) -> None:
        """Release the copy; one that was made for this mount, and holds nothing yet, goes."""
        if copy.is_new and os.path.isdir(copy.path) and copy.is_untouched():
            copy.discard()
        else:
            copy.release()


def _require_privileges(store: Store) -> None:
    """UsageError that names what this process lacks on the store's volume."""
    try:
        lacking = privileges.missing(store.fd)
    except OSError:
        return  # there is no room to try it; the step that needs it will say so
    if lacking:
        raise privileges.refusal(lacking)


def _become_keeper(held: dict[str, int]) -> NoReturn:
    """Go on as the keeper, in this process, with these descriptors. SystemFailure."""
    for fd in held.values():
        os.set_inheritable(fd, True)
    _become([*KEEPER_COMMAND, "holding", *(f"{name}={fd}" for name, fd in held.items())], held)


def _become(command: list[str], held: dict[str, int]) -> NoReturn:
    """Go on as another program, with these descriptors and no others. SystemFailure."""
    for fd in inherited.descriptors(*held.values()):
        os.set_inheritable(fd, False)
    try:
        os.execve(command[0], command, inherited.environment(foreground=True))  # noqa: S606
    except OSError as error:
        raise SystemFailure(f"cannot start {command[0]}: {error.strerror}") from None


def _start_attendant(overlay: OverlayMount) -> int:
    """Start the attendant of a mount in the background, and return its pid. SystemFailure.

    Nobody waits for it: what it has to do comes with the descriptors, and signals wait until it
    takes them.
    """
    from cowfs.store import runtime

    command = attendant.command("watch", overlay.held, attendant.BACKGROUND)
    try:
        log = runtime.open_log(overlay.record.device)
        try:
            return os.posix_spawn(
                command[0],
                command,
                inherited.environment(foreground=False),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                    *(
                        (os.POSIX_SPAWN_CLOSE, fd)
                        for fd in inherited.descriptors(*overlay.held.values())
                    ),
                ],
                setsid=True,
                setsigmask=[*FORWARDED, LEAVE],
                setsigdef=[*SIGNALS, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD],
            )
        finally:
            os.close(log)
    except OSError as error:
        raise SystemFailure(f"cannot start {' '.join(command)}: {error.strerror}") from None


def _kept_by_systemd() -> dict[str, int]:
    """What the service manager has kept for us, by name: sd_listen_fds_with_names(3)."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    count = int(os.environ.get("LISTEN_FDS", "0"))
    return dict(zip(names, range(3, 3 + count), strict=False))


def _is_attended(held: dict[str, int]) -> bool:
    """Whether overlayfs serves a copy, or did until now, and only its attendant is missing."""
    return {ORDER, LOCK, attendant.WATCH} <= held.keys()


def _is_mounted(held: dict[str, int]) -> bool:
    """Whether there is a mount to go on with: its device has an error to tell once it is gone."""
    if not {DEVICE, ORDER, LOCK} <= held.keys():
        return False
    poll = select.poll()
    poll.register(held[DEVICE], 0)
    return not poll.poll(0)


def _copy_exists(source: str, mountpoint: str, options: Options) -> bool:
    """Whether there may be a copy to go on with, though its source has gone. Creates nothing."""
    from cowfs.store import naming

    copies = os.path.join(_store_path(source, options.store), "copies")
    possible = naming.possible(mountpoint) if options.copy is None else [options.copy]
    return any(os.path.isdir(os.path.join(copies, name)) for name in possible)


def _store_path(source: str, store: str | None) -> str:
    """The store of a source, also when there is none yet."""
    from cowfs.store.directory import STORE_NAME, volume_of

    return os.path.join(volume_of(source), STORE_NAME) if store is None else store


def _failure(message: str, exit_code: int) -> CowfsError:
    """What another process reported, as an error of this one."""
    error = MountFailure(message)
    error.exit_code = exit_code
    return error
