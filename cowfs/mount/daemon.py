"""The life of a mount: made, ready, served, unmounted, put away.

`python -m cowfs.daemon FD` is the process that the keeper starts (`keeper.py`): it imports what
takes long, and is then told over the socket FD what to serve.  Among the descriptors that come with
that may be the kernel's connection: then another daemon has served this mount, and this one goes on
where that one was killed.  What only memory knew is in the channel's ledger and among the
descriptors; everything else is on the disk (`restore.py`).

The mount ends when the kernel says that the connection is gone, whoever unmounted it.  SIGTERM,
SIGHUP and SIGINT ask for that: an idle mount is unmounted, a busy one stays, with a line in the log
that says how to find who holds it. SIGTERM goes on asking for some seconds. A second SIGINT
detaches the mount from the tree, and it ends with its last user.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass

import pyfuse3
import trio

from cowfs import __version__
from cowfs.channel import Channel, check_ledger
from cowfs.mount.config import Config
from cowfs.mount.conversation import (
    ABLE,
    CHECK,
    CONTROL,
    DEVICE,
    DONE,
    GO,
    LEDGER,
    LOCK,
    LOG,
    ORDER,
    PERSISTENCE,
    PING,
    PLACE,
    PONG,
    UNABLE,
    UNDO,
    WATCH,
)
from cowfs.mount.keeperlink import KeeperLink
from cowfs.mount.mountpoint import Mountpoint
from cowfs.mount.options import join as join_options
from cowfs.overlay.backing import Backing
from cowfs.overlay.inodes import NodeTable
from cowfs.overlay.inplace import InPlace
from cowfs.overlay.operations import Operations
from cowfs.overlay.overlay import Overlay
from cowfs.overlay.priming import Priming
from cowfs.overlay.restore import Restoration
from cowfs.overlay.touching import Touching
from cowfs.overlay.turns import Turns
from cowfs.overlay.vault import STATE_VERSION
from cowfs.store import copies, remedies, runtime
from cowfs.store.store import Copy, Store
from cowfs.system import descriptors, inherited, mountinfo, remedy, syscalls
from cowfs.system.errors import CowfsError, InternalError, MountFailure, SystemFailure

log = logging.getLogger("cowfs")

# With off, a mount does as on a kernel before 6.9, which cannot send requests again.
RESEND_VARIABLE = "COWFS_RESEND"

# umount -f aborts the connection, and takes the mount away in the next moment: seconds.
ABORTING = 1.0


class DrainReplies(trio.abc.Instrument):
    """Sends replies on their way whenever the event loop has nothing left to do.

    pyfuse3 writes them into the socket; that the loop's own thread takes them out again spares the
    wake-up of another one, which would cost more than the handler.
    """

    def __init__(self, channel: Channel, nodes: NodeTable) -> None:
        self._drain = channel.drain
        self._note = channel.note_nodes
        self._nodes = nodes
        self._noted = -1

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - trio's interface
        self._drain()
        count = len(self._nodes)
        if count != self._noted:  # what others read of it shall cost nobody a question
            self._note(count)
            self._noted = count


# The rest of what the keeper holds belongs to files, see `restore.py`.
_OF_THE_MOUNT = (ORDER, LOCK, DEVICE, LEDGER, PLACE, LOG, CONTROL)


@dataclass(frozen=True)
class Place:
    """Where a mount is, for the daemon that goes on with it."""

    device: str
    mount_id: int

    def to_fd(self) -> int:
        """A new descriptor of it."""
        fields = {"state": STATE_VERSION, **vars(self)}
        return _memory("cowfs-place", json.dumps(fields).encode())

    @classmethod
    def from_fd(cls, fd: int) -> Place:
        """OSError; ValueError: the state is one that this version does not know."""
        fields = json.loads(os.pread(fd, 1 << 16, 0))
        state = fields.get("state", 0)
        if state != STATE_VERSION:
            raise ValueError(f"its state has version {state}, and this one reads {STATE_VERSION}")
        return cls(fields["device"], fields["mount_id"])


def serve(config: Config, vault: KeeperLink, held: dict[str, int]) -> int:
    """Serve one mount until it is unmounted; 0 if all went well.

    *held*: what the keeper has from the daemon before, by name; taken over.  Failures before the
    mount answers are CowfsErrors.  They leave nothing mounted if there was nothing before; the copy
    stays the caller's to clean up.
    """
    os.umask(0)  # the caller's umask comes with each request
    resumes = DEVICE in held
    mount = _open(config, vault, held)
    _run(mount, held)
    vault.unmounted = True
    mount.close()
    if mount.failure is not None:
        raise mount.failure
    if not (mount.was_ready or resumes):
        raise MountFailure(f"{config.mountpoint} was unmounted before it was ready")
    mount.put_away()
    return 0


def _open(config: Config, vault: KeeperLink, held: dict[str, int]) -> _Mount:
    """The copy, and a channel that is not connected yet."""
    limit = descriptors.limit()
    store = Store.open(config.store)
    copy = Copy.adopt(store, config.copy, config.lock_fd)
    try:
        if DEVICE in held and not config.options.read_only:
            copies.recover(store, config.copy)  # what the one before left half done
        overlay, private_mount_fd = _open_layers(config, copy, vault)
    except OSError as error:
        raise MountFailure(f"cannot open the copy {copy.name}: {error}") from None
    try:
        channel = Channel(
            passthrough=config.options.passthrough != "off",
            root_ino=overlay.nodes.root_ino,
            ledger_fd=held.pop(LEDGER, -1),
            private_mount_fd=private_mount_fd,
        )
    except OSError as error:
        raise MountFailure(f"cannot go on with the mount: {error.strerror}") from None
    return _Mount(config, copy, overlay, channel, vault, limit)


def _open_layers(config: Config, copy: Copy, vault: KeeperLink) -> tuple[Overlay, int]:
    """The merged namespace; and where the kernel opens private files for passthrough, or -1."""
    options = config.options
    private_mount_fd = -1
    tree, upper, work = copy.directories()
    if options.passthrough != "off":
        tree = _read_only(tree, upper)
        private_mount_fd = _with_times(upper, options.mount_flags)
    if options.read_only:
        os.close(work)
    overlay = Overlay(
        tree,
        upper,
        None if options.read_only else work,
        copy.template.hard_links,
        vault=vault,
    )
    return overlay, private_mount_fd


def _run(mount: _Mount, held: dict[str, int]) -> None:
    """Make the mount or go on with it, and serve it until the connection is gone."""
    resumes = DEVICE in held
    try:
        if resumes:
            mount.resume(held)
        else:
            mount.make()
        mount.serve()
    except BaseException:
        if resumes or mount.was_ready:
            # The next daemon goes on.  What is closed here would be closed for it too.
            log.exception("the daemon failed")
            os._exit(InternalError.exit_code)
        mount.disconnect()
        raise


def _read_only(tree: int, upper: int) -> int:
    """The template's tree in a read-only mount of its own; *tree* is taken over.

    The kernel opens a backing file again as the user has opened the file of the copy, past every
    check of permissions, the immutable flag's too: one wrong backing id would let users write into
    the template.  With this mount it cannot, and its reads do not move the access time, which all
    copies show.  A kernel that has no such mounts, or does not clone from one into *upper*, has no
    passthrough either.
    """
    try:
        view = syscalls.mount_apart(tree, syscalls.MS_RDONLY | syscalls.MS_NOATIME)
    except OSError:
        return tree
    if not syscalls.clones_between(upper, view):
        tree, view = view, tree
    os.close(tree)
    return view


def _with_times(upper: int, flags: int) -> int:
    """The upper directory in a mount of its own that keeps access times as the copy's mount says.

    Of a file that the kernel reads by itself it asks the file's own mount, and else that would be
    the volume's.  -1: there can be no such mount, and the volume's decides.
    """
    try:
        apart = syscalls.mount_apart(upper, flags & ~syscalls.MS_RDONLY)
    except OSError:
        return -1
    try:
        return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=apart)
    finally:
        os.close(apart)


class _Mount:
    """One mount while it is served."""

    def __init__(
        self,
        config: Config,
        copy: Copy,
        overlay: Overlay,
        channel: Channel,
        vault: KeeperLink,
        descriptor_limit: int,
    ) -> None:
        self._config = config
        self._descriptor_limit = descriptor_limit
        self._copy = copy
        self._overlay = overlay
        self._channel = channel
        self._vault = vault
        self._place = Mountpoint(config.mountpoint)
        self._device = ""
        self._resumed = False
        # Whether the keeper has our log: then that is where the standard streams of daemons lead.
        self._has_log = False
        # Whether another daemon could go on with it.
        self._replaceable = True
        # What takes long and is done in pieces; and how many there were at the last ping.
        self._turns = Turns()
        self._turns_taken = 0
        self.was_ready = False
        # Whether the kernel has said that the connection has ended.
        self._is_over = False
        self.failure: CowfsError | None = None

    def make(self) -> None:
        """mount(2) and the conversation about capabilities; nobody is served yet."""
        config, channel = self._config, self._channel
        options = config.options
        try:
            channel.mount(
                os.fsencode(config.source),
                self._place.path,
                options.mount_flags,
                b"default_permissions,allow_other",
            )
        except OSError as error:
            raise _mount_failure(config.mountpoint, error) from None
        try:
            self._device = self._place.mounted()
            channel.start()
            if options.passthrough == "on":
                self._require_passthrough()
            self._replaceable = channel.resends and os.environ.get(RESEND_VARIABLE) != "off"
            runtime.claim(self._device)
            self._start_libfuse()
            self._entrust()
        except BaseException as error:
            self._detach()
            if isinstance(error, OSError):
                raise MountFailure(
                    f"cannot serve {config.mountpoint}: {error.strerror or error}"
                ) from None
            raise

    def resume(self, held: dict[str, int]) -> None:
        """Go on with the mount of a daemon that was killed."""
        channel, overlay = self._channel, self._overlay
        place = Place.from_fd(held[PLACE])
        self._device = place.device
        self._resumed = True
        self._has_log = LOG in held
        self._place.found(place.mount_id)
        device = held.pop(DEVICE)
        files = {name: fd for name, fd in held.items() if name not in _OF_THE_MOUNT}
        for name in _OF_THE_MOUNT:
            if name in held and name != LOCK:
                os.close(held[name])
        try:
            # The lock lies on the volume, and is the one descriptor of it that no kill has closed.
            lost = channel.resume(device, self._config.lock_fd)
        except OSError as error:
            if error.errno == errno.EINVAL:
                # Nobody can: callers get ENOTCONN, and not a wait without end.
                log.error("this kernel cannot send requests again (Linux 6.9 can)")
                self._vault.bye(SystemFailure.exit_code)
            raise
        if lost:
            log.warning("%d open files could not be opened again", lost)
        restoration = Restoration(overlay, files)
        for node in overlay.nodes:
            if node.held_fd >= 0:
                with contextlib.suppress(OSError):
                    channel.hold(node.nodeid, 0)  # for whom, nobody knows any more
        for nodeid in [node.nodeid for node in overlay.nodes if node is not overlay.nodes.root]:
            if not channel.knows(nodeid):  # its FORGET was read by a daemon that is gone
                for dropped in overlay.forget(nodeid, 1):
                    channel.forget(dropped)
        for parent, entry in restoration.stale_names():
            channel.invalidate_entry(parent, entry)
        self._start_libfuse()

    def _start_libfuse(self) -> None:
        options = self._config.options
        channel, overlay = self._channel, self._overlay
        priming = Priming(overlay, channel)
        touching = Touching(overlay, channel)
        overlay.alone = touching
        overlay.times = channel
        overlay.layers.on_release = channel.let
        backing = Backing(
            overlay,
            channel,
            priming,
            touching,
            passthrough=channel.passthrough,
            share_min=options.share_min,
            read_only=options.read_only,
            clone=options.clone,
            in_place=InPlace(options.in_place),
            synchronous=bool(options.mount_flags & syscalls.MS_SYNCHRONOUS),
        )
        self._turns = backing.turns
        operations = Operations(
            overlay,
            backing,
            priming,
            touching,
            read_only=options.read_only,
            on_forgotten=channel.forget,
        )
        pyfuse3.init(operations, f"/dev/fd/{channel.daemon_fd}", {"default_permissions"})

    def _entrust(self) -> None:
        """Give the keeper what the next daemon needs; the device last, for a keeper that has the
        device starts the next daemon.

        Where there can be no next one, the connection has to end with this process: the requests
        that it has read would wait for ever.
        """
        if not self._replaceable:
            syscalls.outlive_parent()
            return
        vault = self._vault
        place = Place(self._device, self._place.mount_id).to_fd()
        vault.put(PLACE, place)
        os.close(place)
        with runtime.control_socket(self._device) as listener:
            vault.put(CONTROL, listener.fileno())
        vault.put(LEDGER, self._channel.ledger_fd)
        vault.put(DEVICE, self._channel.dev_fd)

    def _require_passthrough(self) -> None:
        if not self._channel.passthrough:
            raise MountFailure(
                "passthrough=on, but this kernel or volume has no FUSE passthrough "
                f"({remedy.command('cowfs doctor')} tells why); mount with passthrough=auto"
            )

    def serve(self) -> None:
        """Until the connection is gone."""
        trio.run(self._serve, instruments=[DrainReplies(self._channel, self._overlay.nodes)])

    def disconnect(self) -> None:
        """Nobody is served any more."""
        self._channel.close()

    def close(self) -> None:
        """The same, with all that was open of the copy but its lock."""
        self.disconnect()
        self._overlay.close()

    async def _serve(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve_requests, nursery.cancel_scope)
                await nursery.start(self._watch_signals)
                nursery.start_soon(self._watch_connection)
                nursery.start_soon(self._heed_keeper)
                nursery.start_soon(self._catch_up)
                nursery.start_soon(self._announce)
        except BaseException:
            if not (self.was_ready or self._resumed):
                self._detach()  # later than that, never: programs would write to what lies below
            raise
        pyfuse3.close(unmount=False)

    async def _serve_requests(self, scope: trio.CancelScope) -> None:
        await pyfuse3.main()
        if not self._is_over:
            raise RuntimeError("libfuse ended, and the mount did not")
        scope.cancel()

    async def _watch_connection(self) -> None:
        """Only when the kernel says so has the mount ended, and its copy is put away; after every
        other error the next daemon goes on."""
        await trio.lowlevel.wait_readable(self._channel.closed_fd)
        if number := self._channel.read_error:
            raise OSError(number, os.strerror(number), "/dev/fuse")
        self._is_over = True
        pyfuse3.terminate()

    async def _heed_keeper(self) -> None:
        seconds = self._config.options.watchdog
        if seconds and self._replaceable:
            self._vault.say(WATCH, str(seconds))
        while True:
            await trio.lowlevel.wait_readable(self._vault)
            word = self._vault.word()
            if word is None:
                return
            if word == PING:
                self._channel.drop_idle_clones()
                if self._makes_progress(seconds):
                    self._vault.say(PONG)
            elif word == UNDO:
                self._detach()

    async def _catch_up(self) -> None:
        """Whenever a keeper was stopped and goes on."""
        while self._vault.is_alive:
            await self._vault.is_late.wait()
            await trio.lowlevel.wait_writable(self._vault)
            self._vault.catch_up()

    def _makes_progress(self, seconds: float) -> bool:
        """Whether requests are answered: the oldest is young, waits for a thread (a clone, an
        fsync), which takes as long as the disk takes, or is done in pieces, and some were."""
        busy = trio.to_thread.current_default_thread_limiter().borrowed_tokens
        before, self._turns_taken = self._turns_taken, self._turns.taken
        return self._channel.oldest() < seconds or busy > 0 or self._turns.taken > before

    async def _announce(self) -> None:
        """Ask the mount something as any user would, then say that it answers."""
        config = self._config
        try:
            if not self._resumed:
                root = await trio.to_thread.run_sync(os.stat, config.mountpoint)
                if root.st_ino != self._overlay.nodes.root_ino:
                    raise OSError(errno.EBUSY, "it shows something else")
            self._write_record()
        except OSError as error:
            if not self._resumed:
                self.failure = MountFailure(
                    f"{config.mountpoint} was mounted but does not answer: {error.strerror}"
                )
                self._detach()
                return
            # Its users have it already: better a mount that `cowfs list` does not show than none.
            log.warning("%s has no record: %s", config.mountpoint, error.strerror)
        if os.getpgrp() != os.getpid():
            os.setsid()  # the automounter's process group has done its part: see keeper.py
        gc.collect()
        gc.freeze()  # what was imported stays: no collection needs to look at it again
        self.was_ready = True
        # A program that waits for the mount may wait for the end of our output, too. If the first
        # daemon ended before it had answered, the next one ends the output.
        if not (config.foreground or self._has_log):
            self._redirect_standard_streams()
        if not self._resumed:
            os.chdir("/")
            log.info("%s shows the copy %s of %s", config.mountpoint, config.copy, config.source)
        else:
            log.info("%s is served by cowfs %s from now on", config.mountpoint, __version__)
        if self._descriptor_limit < descriptors.FEW:
            log.warning(
                "users of %s may have about %d files open at once, since there are only %d "
                "descriptors; raise LimitNOFILE= of the unit or ulimit -Hn, and the sysctl "
                "fs.nr_open",
                *(config.mountpoint, self._descriptor_limit // 2, self._descriptor_limit),
            )
        self._vault.ready(
            {"ready": True, "pid": os.getpid(), "passthrough": self._channel.passthrough}
        )

    def _redirect_standard_streams(self) -> None:
        """From now on nobody reads them: what is printed goes to the log's place too."""
        target = runtime.open_log(self._device)
        for fd in (1, 2):
            os.dup2(target, fd)
        self._vault.put(LOG, target)
        os.close(target)

    def _write_record(self) -> None:
        config, copy = self._config, self._copy
        runtime.write(
            runtime.Record(
                device=self._device,
                mountpoint=config.mountpoint,
                source=config.source,
                store=config.store,
                copy=config.copy,
                template=copy.template.id,
                daemon_pid=os.getpid(),
                keeper_pid=os.getppid(),
                started=time.time(),
                options=join_options(config.options.given),
                persistent=copy.persistent,
                version=__version__,
                replaceable=self._replaceable,
                passthrough=self._channel.passthrough,
            )
        )

    async def _watch_signals(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        asked = 0
        async with trio.open_nursery() as attempts:
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP, signal.SIGINT) as signals:
                task_status.started()
                async for number in signals:
                    asked += number == signal.SIGINT
                    patience = PERSISTENCE if number == signal.SIGTERM else 0.0
                    attempts.start_soon(self._do_as_told, number, patience, asked > 1)

    async def _do_as_told(self, number: int, patience: float, detach: bool) -> None:
        """What a signal asks for, which the next daemon has to do if this one is killed at it."""
        await self._unmount(patience, detach)
        self._vault.say(DONE, str(int(number)))

    async def _unmount(self, patience: float, detach: bool) -> None:
        """Unmount it as soon as nobody uses it, for at most *patience* seconds."""
        deadline = trio.current_time() + patience
        while await trio.to_thread.run_sync(self._is_busy, detach):
            if trio.current_time() >= deadline:
                log.warning(
                    "%s is in use and stays mounted; end what uses it (%s) and ask again",
                    self._config.mountpoint,
                    remedy.command("fuser -vm", self._config.mountpoint),
                )
                return
            await trio.sleep(0.2)

    def _is_busy(self, detach: bool) -> bool:
        """Unmount it; True when that is refused because it is in use."""
        try:
            self._place.unmount(syscalls.MNT_DETACH if detach else 0)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return True
            if error.errno != errno.EINVAL:  # EINVAL: somebody else has unmounted it
                log.warning("cannot unmount %s: %s", self._config.mountpoint, error.strerror)
        return False

    def _detach(self) -> None:
        try:
            self._place.unmount(syscalls.MNT_DETACH)
        except OSError as error:
            if (
                error.errno != errno.EINVAL
            ):  # EINVAL: it is not there, and what is there is not ours
                log.warning("cannot unmount %s: %s", self._config.mountpoint, error.strerror)

    def put_away(self) -> None:
        """After the unmount: the copy is kept or discarded, and its lock let go."""
        runtime.remove(self._device)
        is_mounted = self._is_mounted_yet()
        what = "kept"
        if self._copy.persistent:
            self._copy.release()
        elif is_mounted:
            self._copy.release()
            what = f"left for {remedies.of_store('cowfs gc', self._config.store)} to discard"
        else:
            self._copy.discard()
            what = "discarded"
        where, name = self._config.mountpoint, self._config.copy
        if is_mounted:
            log.warning(
                "the connection of %s was aborted, and the copy %s is %s: it answers ENOTCONN "
                "until it is unmounted with: %s",
                *(where, name, what, remedy.command("cowfs umount", where)),
            )
        else:
            log.info("%s is unmounted, and the copy %s is %s", where, name, what)

    def _is_mounted_yet(self) -> bool:
        """Whether the connection has ended without an unmount: it was aborted.

        The path is not asked: an automounter lets nobody pass there until the unmount is done, and
        that waits for us.
        """
        deadline = time.monotonic() + ABORTING
        while self._is_in_tree():
            if time.monotonic() >= deadline:
                return True
            time.sleep(0.02)
        return False

    def _is_in_tree(self) -> bool:
        try:
            return syscalls.is_mounted(self._place.mount_id)
        except OSError:  # before Linux 6.8: the next mount may have our device's number by now
            return any(mount.device == self._device for mount in mountinfo.read())


def _mount_failure(mountpoint: str, error: OSError) -> CowfsError:
    if error.errno == errno.EPERM:
        return MountFailure(f"cannot mount on {mountpoint}: not permitted; run as root")
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return SystemFailure(
            f"cannot mount on {mountpoint}: {error.strerror}; "
            f"is the fuse module loaded? Try: {remedy.command('modprobe fuse')}"
        )
    return MountFailure(f"cannot mount on {mountpoint}: {error.strerror}")


def _memory(name: str, content: bytes) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.write(fd, content)
    return fd


def _read_order(held: dict[str, int]) -> Config:
    """What to serve.  ValueError, KeyError, TypeError: another version's."""
    text = os.pread(held[ORDER], os.fstat(held[ORDER]).st_size, 0)
    return Config.from_json(text, held[LOCK])


def _refusal(held: dict[str, int]) -> str | None:
    """Why this version cannot take over from the one that serves; None when it can."""
    try:
        Place.from_fd(held[PLACE])
        options = _read_order(held).options
        check_ledger(held[LEDGER], options.passthrough != "off")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"cowfs {__version__} cannot take over from the version that serves: {error}"
    return None


def _take_order(vault: KeeperLink) -> tuple[Config, dict[str, int]] | None:
    """Wait for what to serve; answers the question of whether we could, meanwhile."""
    while (order := vault.order()) is not None:
        verb, argument, held = order
        if verb == GO:
            if argument:
                syscalls.die_with_parent(int(argument.partition(" ")[2]))
            return _read_order(held), held
        if verb == CHECK:
            refusal = _refusal(held)
            for fd in held.values():
                os.close(fd)
            if refusal is None:
                vault.say(ABLE)
            else:
                vault.say(UNABLE, refusal)
    return None


def main(arguments: list[str]) -> int:
    """The process that the keeper starts."""
    vault = KeeperLink(socket.socket(fileno=int(arguments[0])))
    inherited.drop_limits()  # a keeper of another version may not have done it
    inherited.drop_signals()
    _set_up_log()
    # A keeper that has waited in vain for a pong asks for the stacks just before it kills us.
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    told = _take_order(vault)
    if told is None:
        return 0
    config, held = told
    if config.foreground and not inherited.is_journal(2):
        log.setLevel(logging.WARNING)  # on a terminal only what goes wrong is shown
    return _serve_or_say_why_not(config, vault, held)


def _set_up_log() -> None:
    """Lines on stderr.  The journal adds time and process by itself, and takes sd-daemon(3)'s
    numbers for levels."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s cowfs[%(process)d] %(levelname)s: %(message)s",
        stream=sys.stderr,
    )
    if inherited.is_journal(2):
        logging.getLogger().handlers[0].setFormatter(_JournalFormatter())


class _JournalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4}.get(record.levelno, 3)
        lines = super().format(record).splitlines()
        return "\n".join(f"<{level}>{line}" for line in lines)


def _serve_or_say_why_not(config: Config, vault: KeeperLink, held: dict[str, int]) -> int:
    """Serve; the exit code.  The keeper is told of it, and of a failure for the launcher.

    It is told nothing where another daemon may do better.
    """
    resumes = DEVICE in held
    try:
        code = serve(config, vault, held)
        vault.bye(code)
        return code
    except CowfsError as error:
        problem, code = str(error), error.exit_code
    except Exception as error:
        log.exception("the daemon failed")
        problem, code = f"the daemon failed: {error!r}", InternalError.exit_code
    if resumes and not vault.unmounted:
        log.warning("cannot go on with %s: %s", config.mountpoint, problem)
        return code
    if config.foreground:
        sys.stderr.write(f"cowfs: {problem}\n")
        if config.fresh:
            _give_back(config)
    vault.failed(problem, code)
    vault.bye(code)
    return code


def _give_back(config: Config) -> None:
    """Discard the copy that was made for a mount that failed, unless something is in it."""
    with contextlib.suppress(CowfsError, OSError):
        copy = Copy.adopt(Store.open(config.store), config.copy, config.lock_fd)
        if copy.is_untouched():
            copy.discard()
