"""The life of a mount: made, ready, served, unmounted, put away.

`serve` runs one mount from beginning to end in this process.  `python -m cowfs.daemon FD` is the
process that `cowfs mount` starts: it imports what takes long, and is then told over the socket FD
what to serve (`cowfs.config`).

The mount ends when the kernel says that the connection is gone, whoever unmounted it.  SIGTERM,
SIGHUP and SIGINT ask for that: an idle mount is unmounted, a busy one stays, with a line in the log
that says who holds it; a second SIGINT detaches it from the tree, and it ends with its last user.
"""

from __future__ import annotations

import errno
import gc
import logging
import logging.handlers
import os
import resource
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import pyfuse3
import trio

from cowfs import config as conversation
from cowfs import mountinfo, runtime, syscalls
from cowfs.backing import Backing
from cowfs.channel import Channel
from cowfs.errors import CowfsError, InternalError, MountFailure, SystemFailure
from cowfs.mountpoint import Mountpoint
from cowfs.operations import Operations
from cowfs.options import join as join_options
from cowfs.overlay import Overlay
from cowfs.priming import Priming
from cowfs.store import Copy, Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from cowfs.config import Config

log = logging.getLogger("cowfs")

# Each open file of a mount takes two descriptors at most, one here and one in the kernel's backing
# table; fs.nr_open bounds it from above.
DESCRIPTORS = 1 << 20


class DrainReplies(trio.abc.Instrument):
    """Sends replies on their way whenever the event loop has nothing left to do.

    pyfuse3 writes them into the socket; that the loop's own thread takes them out again spares the
    wake-up of another one, which would cost more than the handler.
    """

    def __init__(self, channel: Channel) -> None:
        self._drain = channel.drain

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - trio's interface
        self._drain()


def serve(config: Config, ready: Callable[[dict[str, Any]], None]) -> int:
    """Serve one mount until it is unmounted; 0 if all went well.

    *ready* is called once the mount answers.  Failures before that are CowfsErrors, and leave
    nothing mounted; the copy stays the caller's to clean up.
    """
    os.umask(0)  # the caller's umask comes with each request
    _raise_descriptor_limit()
    store = Store.open(config.store)
    copy = Copy.adopt(store, config.copy, config.lock_fd)
    options = config.options
    try:
        tree, upper, work = copy.directories()
        if options.read_only:
            os.close(work)
        overlay = Overlay(
            tree, upper, None if options.read_only else work, copy.template.hard_links
        )
    except OSError as error:
        raise MountFailure(f"cannot open the copy {copy.name}: {error}") from None
    channel = Channel(passthrough=options.passthrough != "off", root_ino=overlay.nodes.root_ino)
    try:
        mount = _Mount(config, copy, overlay, channel)
        mount.make()
        trio.run(mount.run, ready, instruments=[DrainReplies(channel)])
    finally:
        channel.close()
        overlay.close()
    if mount.failure is not None:
        raise mount.failure
    if not mount.was_ready:
        raise MountFailure(f"{config.mountpoint} was unmounted before it was ready")
    mount.put_away()
    return 0


class _Mount:
    """One mount while it is served."""

    def __init__(self, config: Config, copy: Copy, overlay: Overlay, channel: Channel) -> None:
        self._config = config
        self._copy = copy
        self._overlay = overlay
        self._channel = channel
        self._place = Mountpoint(config.mountpoint)
        self._device = ""
        self.was_ready = False
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
            self._place.mounted()
            channel.start()
            if options.passthrough == "on":
                self._require_passthrough()
            mounted = mountinfo.mounted_at(config.mountpoint)
            if mounted is None:
                raise MountFailure(f"{config.mountpoint}: the mount vanished as it was made")
            self._device = mounted.device
            priming = Priming(self._overlay, channel)
            backing = Backing(
                self._overlay,
                channel,
                priming,
                passthrough=channel.passthrough,
                share_min=options.share_min,
                read_only=options.read_only,
                clone_on_open=options.clone == "open",
            )
            operations = Operations(
                self._overlay,
                backing,
                priming,
                read_only=options.read_only,
                on_forgotten=channel.forget,
            )
            pyfuse3.init(operations, f"/dev/fd/{channel.daemon_fd}", {"default_permissions"})
        except BaseException as error:
            self._detach()
            if isinstance(error, OSError):
                raise MountFailure(
                    f"cannot serve {config.mountpoint}: {error.strerror or error}"
                ) from None
            raise

    def _require_passthrough(self) -> None:
        if not self._channel.passthrough:
            raise MountFailure(
                "passthrough=on, but this kernel or volume has no FUSE passthrough "
                "(cowfs doctor tells why); mount with passthrough=auto"
            )

    async def run(self, ready: Callable[[dict[str, Any]], None]) -> None:
        """Serve until the connection is gone."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve_requests, nursery.cancel_scope)
                nursery.start_soon(self._watch_signals)
                nursery.start_soon(self._watch_connection)
                nursery.start_soon(self._announce, ready)
        except BaseException:
            # Nobody answers from here on: callers get ENOTCONN and not a hang.
            self._detach()
            raise
        finally:
            pyfuse3.close(unmount=False)

    async def _serve_requests(self, scope: trio.CancelScope) -> None:
        await pyfuse3.main()
        scope.cancel()

    async def _watch_connection(self) -> None:
        await trio.lowlevel.wait_readable(self._channel.closed_fd)
        pyfuse3.terminate()

    async def _announce(self, ready: Callable[[dict[str, Any]], None]) -> None:
        """Ask the mount something as any user would, then say that it answers."""
        try:
            root = await trio.to_thread.run_sync(os.stat, self._config.mountpoint)
            if root.st_ino != self._overlay.nodes.root_ino:
                raise OSError(errno.EBUSY, "it shows something else")
            self._write_record()
        except OSError as error:
            self.failure = MountFailure(
                f"{self._config.mountpoint} was mounted but does not answer: {error.strerror}"
            )
            self._detach()
            return
        gc.collect()
        gc.freeze()  # what was imported stays: no collection needs to look at it again
        self.was_ready = True
        ready({"ready": True, "pid": os.getpid(), "passthrough": self._channel.passthrough})

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
                keeper_pid=None,
                started=time.time(),
                options=join_options(config.options.given),
                persistent=copy.persistent,
            )
        )

    async def _watch_signals(self) -> None:
        asked = 0
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP, signal.SIGINT) as signals:
            async for number in signals:
                asked += number == signal.SIGINT
                await trio.to_thread.run_sync(self._unmount, asked > 1)

    def _unmount(self, detach: bool) -> None:
        try:
            self._place.unmount(syscalls.MNT_DETACH if detach else 0)
        except OSError as error:
            if error.errno == errno.EBUSY:
                log.warning(
                    "%s is in use and stays mounted; end what uses it (fuser -vm %s) and ask again",
                    self._config.mountpoint,
                    self._config.mountpoint,
                )
            elif error.errno != errno.EINVAL:  # EINVAL: somebody else has unmounted it
                log.warning("cannot unmount %s: %s", self._config.mountpoint, error.strerror)

    def _detach(self) -> None:
        try:
            self._place.unmount(syscalls.MNT_DETACH)
        except OSError as error:
            log.warning("cannot unmount %s: %s", self._config.mountpoint, error.strerror)

    def put_away(self) -> None:
        """After the unmount: the copy is kept or discarded, and its lock let go."""
        if self._place.is_ours():
            self._detach()  # the connection was aborted: nobody will ever answer there
        runtime.remove(self._device)
        if self._copy.persistent:
            self._copy.release()
        else:
            self._copy.discard()


def _mount_failure(mountpoint: str, error: OSError) -> CowfsError:
    if error.errno == errno.EPERM:
        return MountFailure(f"cannot mount on {mountpoint}: not permitted; run as root")
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return SystemFailure(
            f"cannot mount on {mountpoint}: {error.strerror}; "
            "is the fuse module loaded? Try: modprobe fuse"
        )
    return MountFailure(f"cannot mount on {mountpoint}: {error.strerror}")


def _raise_descriptor_limit() -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (DESCRIPTORS, hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
        except (OSError, ValueError):
            continue  # above fs.nr_open, or not ours to raise
        return


def _redirect_standard_streams(device: str) -> None:
    """From now on nobody reads them: what is printed goes to the log's place too."""
    target = runtime.open_log(device)
    for fd in (1, 2):
        os.dup2(target, fd)
    os.close(target)


def main(arguments: list[str]) -> int:
    """The process that `cowfs mount` starts."""
    sock = socket.socket(fileno=int(arguments[0]))
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s cowfs[%(process)d] %(levelname)s: %(message)s",
        stream=sys.stderr,
    )
    told = conversation.receive_config(sock)
    if told is None:
        return 0

    def ready(answer: dict[str, Any]) -> None:
        mounted = mountinfo.mounted_at(told.mountpoint)
        assert mounted is not None
        os.chdir("/")
        _redirect_standard_streams(mounted.device)
        conversation.send_answer(sock, answer)
        sock.close()

    try:
        return serve(told, ready)
    except CowfsError as error:
        problem, code = str(error), error.exit_code
    except Exception as error:
        log.exception("the daemon failed")
        problem, code = f"the daemon failed: {error!r}", InternalError.exit_code
    if sock.fileno() >= 0:
        try:
            conversation.send_answer(sock, {"error": problem, "exit_code": code})
        except OSError:
            pass  # the launcher is gone
    else:
        log.error("%s", problem)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
