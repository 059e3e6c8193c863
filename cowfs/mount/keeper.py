"""The keeper: the small process that a mount's daemon may die under, and the mount does not.

It holds what must outlive the daemon, as descriptors with names: the kernel's connection, the
channel's ledger, the lock of the copy, files that have no name any more.  It starts the daemon,
gives it all of them, and does so again when a daemon ends without having said that it is done.  It
knows neither FUSE nor copies, and allocates next to nothing once a mount runs, so that there is
little that it could die of.

    python -m cowfs.keeper launcher FD           the order comes over this socket
    python -m cowfs.keeper holding NAME=FD ...   go on with these (`order` and `lock` at least)

Under systemd (NOTIFY_SOCKET) all of it is in the service manager's descriptor store too, see
sd_notify(3): a killed keeper is started again, gets them back, and goes on.

It is one thread and one loop.  This file has the loop, signals, processes and descriptors; what is
to be done when is in supervisor.py.  The names are those of conversation.py; what they mean is the
daemon's business.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
import time

from cowfs.mount import conversation, logline, oom, threads
from cowfs.mount.conversation import (
    ABLE,
    CONTROL,
    DAEMON,
    DEVICE,
    DROP,
    FD,
    FORWARDED,
    GO,
    LEAVE,
    LOCK,
    LOG,
    ORDER,
    PUT,
)
from cowfs.mount.servicemanager import Systemd
from cowfs.mount.supervisor import Actions, Event, Role, Supervisor
from cowfs.system import inherited
from cowfs.system.errors import InternalError

TYPE_CHECKING = False  # as mypy understands it: see conversation.py
if TYPE_CHECKING:
    from typing import Protocol

    class Start(Protocol):
        """What starts a daemon, in a process group of its own or in ours; its pid. OSError."""

        def __call__(self, command: list[str], *, apart: bool) -> int: ...


# Messages of the daemon are taken in bunches, so that it is not interrupted for each: at most this
# many at a time, and none for this many seconds after it has put or dropped something.
MESSAGES = 1000
BUNCH = 0.005
# How many bytes may lie in a daemon's socket; and how many seconds to wait for a daemon that reads
# nothing.
BUFFER = 8 << 20
HANDOVER = 5

_SO_SNDBUFFORCE = 32

# All else that a daemon says goes to the supervisor; words of other versions are passed over.
_WORDS = {event.value: event for event in Event if event.value in conversation.OF_THE_DAEMON}


def spawn(command: list[str], *, apart: bool) -> int:
    """Start a program; its pid. OSError."""
    return os.posix_spawn(
        command[0],
        command,
        _environment(),
        setpgroup=0 if apart else os.getpgrp(),
        setsigmask=[],
        setsigdef=[*FORWARDED, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ],
    )


class Process:
    """A daemon that was started, with the pid and our end of its socket."""

    def __init__(self, command: list[str], start: Start, *, apart: bool) -> None:
        """*apart*: in a process group of its own: Ctrl-C is for us, and we pass it on."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            theirs.set_inheritable(True)
            self.pid = start([*command, str(theirs.fileno())], apart=apart)
        oom.unprotect(self.pid)
        self.sock = ours
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", HANDOVER, 0))
        try:
            ours.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, BUFFER)
        except OSError:
            pass  # not without CAP_NET_ADMIN
        # When it is listened to again; None: it has closed its end.
        self.listen_at: float | None = 0.0
        # What has ended may have its pid no more.
        self.has_ended = False

    def tell(self, verb: str, argument: str = "", fd: int | None = None) -> bool:
        """False when it is gone, or takes nothing."""
        try:
            conversation.send_packet(self.sock, verb, argument, fd)
        except OSError:
            return False
        return True

    def signal(self, number: int) -> None:
        if not self.has_ended:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass


class Keeper(Actions):
    """One mount, from its first daemon to its last."""

    def __init__(
        self, launcher: socket.socket | None, held: dict[str, int], start: Start = spawn
    ) -> None:
        """*start*: how daemons of this version are started, another way where it is forked."""
        self._start = start
        self.supervisor = Supervisor(self, [sys.executable, *DAEMON])
        self._launcher = launcher
        self._held = held
        self._processes: dict[Role, Process] = {}
        # The `cowfs upgrade` that waits for an answer.
        self._asking: socket.socket | None = None
        # Started by an automounter: keeper and daemon are in its process group until the mount is
        # made.
        self._automounted = launcher is not None and os.getpgrp() != os.getpid()
        self._manager = Systemd()

    def run(self) -> int:
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in (*FORWARDED, LEAVE, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        oom.protect()
        if self._launcher is None:
            self._manager.was_given_back(self._held)
        if DEVICE in self._held:
            self._store()
            self.supervisor.resume(time.monotonic())
        elif not self._begin():
            return 0
        while self.supervisor.exit_code is None:
            self._wait(reading)
            self._look()
            self.supervisor.tick(time.monotonic())
            self._manager.settle(self._held)
        self.reply(conversation.ENDED)
        # The next start would go on with whatever the manager still had.
        self._manager.finish(self._held if self.supervisor.hands_off else {})
        return self.supervisor.exit_code

    # ---------------------------------------------------------------- the loop

    def _wait(self, signals: int) -> None:
        """Take what has come from anywhere; at the latest when something is to be done unasked."""
        now = time.monotonic()
        poll = select.poll()
        poll.register(signals, select.POLLIN)
        sources: dict[int, Process] = {}
        times = [self.supervisor.due(), self._manager.due()]
        for process in self._processes.values():
            if process.listen_at is None:
                continue
            if process.listen_at <= now:
                poll.register(process.sock, select.POLLIN)
                sources[process.sock.fileno()] = process
            else:
                times.append(process.listen_at)
        if CONTROL in self._held and self._asking is None:
            poll.register(self._held[CONTROL], select.POLLIN)
        next_time = min((at for at in times if at is not None), default=None)
        patience = None if next_time is None else max(0.0, next_time - now) * 1000 + 1
        for fd, _event in poll.poll(patience):
            if fd == signals:
                for number in os.read(signals, 64):
                    self._signalled(number)
            elif fd not in sources:
                self._accept()
            elif self._role(sources[fd]) is not None:  # not ended just now
                self._listen(sources[fd])

    def _handle(self, event: Event, argument: str = "", role: Role = Role.DAEMON) -> None:
        self.supervisor.handle(event, argument, now=time.monotonic(), role=role)

    def _signalled(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif number == LEAVE:
            event = Event.HAND_OFF if self._manager.stores else Event.STOP
            self._handle(event, str(int(signal.SIGTERM)))
        elif number in FORWARDED:
            self._handle(Event.STOP, str(number))

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            code = os.waitstatus_to_exitcode(status)
            how = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
            for process in list(self._processes.values()):
                if process.pid == pid:
                    self._ended(process, how)

    def _look(self) -> None:
        """Whether the daemon was killed, but for a thread that ends when the next one has answered
        its call."""
        now = time.monotonic()
        at, process = self.supervisor.look_at, self._processes.get(Role.DAEMON)
        if at is None or now < at:
            return
        if process is not None and threads.cannot_end(process.pid):
            self.log(
                f"a thread of the daemon {process.pid} waits in the kernel, and is not waited for"
            )
            self._ended(process, "its end is under way")
        else:
            self.supervisor.looked(now)

    def _role(self, process: Process) -> Role | None:
        """What it is now; None: it is none of ours any more."""
        for role, one in self._processes.items():
            if one is process:
                return role
        return None

    # ---------------------------------------------------------------- what daemons say

    def _listen(self, process: Process) -> None:
        """Take what the daemon has said so far."""
        for _ in range(MESSAGES):
            try:
                packet = conversation.receive_packet(process.sock, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                self.log(f"cannot read from the daemon: {error.strerror}")
                return
            if packet is None:
                process.listen_at = None
                self._handle_of(process, Event.CLOSED)
                return
            if packet[0] in (PUT, DROP):
                process.listen_at = time.monotonic() + BUNCH
            self._heard(process, *packet)

    def _ended(self, process: Process, how: str) -> None:
        process.has_ended = True
        # What it said before counts.
        while True:
            try:
                packet = conversation.receive_packet(process.sock, socket.MSG_DONTWAIT)
            except OSError:
                break
            if packet is None:
                break
            self._heard(process, *packet)
        self._handle_of(process, Event.EXITED, how)

    def _heard(self, process: Process, verb: str, argument: str, fd: int | None) -> None:
        if verb == PUT and fd is not None:
            self._hold(argument, fd)
        elif verb == DROP:
            self._let_go(argument)
        elif verb == ABLE and process.has_ended:
            pass  # not any more
        elif verb in _WORDS:
            self._handle_of(process, _WORDS[verb], argument)

    def _handle_of(self, process: Process, event: Event, argument: str = "") -> None:
        role = self._role(process)
        if role is not None:
            self._handle(event, argument, role)

    # ---------------------------------------------------------------- what is held

    def _hold(self, name: str, fd: int) -> None:
        if name in self._held:
            os.close(self._held[name])
        self._held[name] = fd
        if name == DEVICE:
            self._handle(Event.MOUNTED)
            self._store()
        elif DEVICE in self._held:
            self._manager.change(name)
        if name == LOG:
            os.dup2(fd, 1)
            os.dup2(fd, 2)

    def _store(self) -> None:
        """Give all that is held to the service manager, once there is a mount to go on with.

        Without a mount its duplicate of the lock would keep the copy from the next start.
        """
        if DEVICE in self._held:
            for name in self._held:
                self._manager.change(name)

    def _let_go(self, name: str) -> None:
        fd = self._held.pop(name, None)
        if fd is not None:
            os.close(fd)
            self._manager.change(name)

    # ---------------------------------------------------------------- the beginning

    def _begin(self) -> bool:
        """Start the first daemon; False: it is not needed, since the launcher has left.

        It is started before there is an order: what it imports takes longer than all else.
        """
        command = self.supervisor.command
        try:
            pid = self.start(Role.DAEMON, command)
        except OSError as error:
            self.fail(f"cannot start {command[0]}: {error.strerror}")
            self.supervisor.exit_code = InternalError.exit_code
            return True
        if self._launcher is not None and not self._take_order():
            self._processes[Role.DAEMON].sock.close()  # it leaves
            os.waitpid(pid, 0)
            return False
        self.supervisor.mount(pid, time.monotonic())
        return True

    def _take_order(self) -> bool:
        assert self._launcher is not None
        try:
            order = conversation.receive_order(self._launcher)
        except (OSError, EOFError, ValueError) as error:
            self.log(f"what the launcher said makes no sense: {error}")
            return False
        if order is None:
            return False
        text, self._held[LOCK] = order
        fd = os.memfd_create("cowfs-order", os.MFD_CLOEXEC)
        os.write(fd, text)
        self._held[ORDER] = fd
        return True

    # ---------------------------------------------------------------- who asks for an upgrade

    def _accept(self) -> None:
        """One packet: the new command, its words separated by NUL."""
        try:
            with socket.socket(fileno=os.dup(self._held[CONTROL])) as listener:
                asking, _ = listener.accept()
            asking.settimeout(1)
            words = os.fsdecode(asking.recv(conversation.MAX_PACKET))
        except OSError:
            return
        self._asking = asking
        self._handle(Event.UPGRADE, words, Role.STANDBY)

    # ---------------------------------------------------------------- what the supervisor wants

    def start(self, role: Role, command: list[str]) -> int:
        # Another version is always started: forked it would have what this one has imported.
        start = self._start if role is Role.DAEMON else spawn
        process = Process(command, start, apart=not self._automounted)
        self._processes[role] = process
        return process.pid

    def give(self, role: Role, verb: str) -> bool:
        process = self._processes[role]
        argument = f"bound {os.getpid()}" if verb == GO and self._manager.stores else ""
        taken = all(process.tell(FD, name, fd) for name, fd in self._held.items())
        return taken and process.tell(verb, argument)

    def tell(self, role: Role, verb: str) -> None:
        self._processes[role].tell(verb)

    def signal(self, role: Role, number: int) -> None:
        self._processes[role].signal(number)

    def forget(self, role: Role) -> None:
        self._processes.pop(role).sock.close()

    def promote(self) -> None:
        self._processes[Role.DAEMON] = self._processes.pop(Role.STANDBY)

    def log(self, text: str) -> None:
        logline.log(text)

    def log_threads(self, role: Role) -> None:
        for task, state, frames in threads.stacks(self._processes[role].pid):
            self.log(f"  thread {task}, state {state}: {' < '.join(frames[:8])}")

    def answer(self, line: str) -> None:
        if self._launcher is None:
            return
        launcher, self._launcher = self._launcher, None
        try:
            with launcher:
                launcher.sendall(conversation.encoded(f"{line}\n"))
        except OSError:  # who wanted the mount is gone
            if Role.DAEMON in self._processes:
                self.tell(Role.DAEMON, conversation.UNDO)

    def fail(self, problem: str) -> None:
        import json

        if self._launcher is None:
            self.log(problem)
        self.answer(json.dumps({"error": problem, "exit_code": InternalError.exit_code}))

    def leave_group(self) -> None:
        if self._automounted:
            os.setsid()
            self._automounted = False

    def reply(self, text: str) -> None:
        if self._asking is not None:
            asking, self._asking = self._asking, None
            try:
                with asking:
                    asking.sendall(conversation.encoded(text))
            except OSError:
                pass

    def notify(self, text: str) -> None:
        self._manager.say(text)


def _environment() -> dict[str, str]:
    """Ours, without what is for us alone."""
    ours = inherited.OF_THE_MANAGER
    return {name: value for name, value in os.environ.items() if name not in ours}


def main(arguments: list[str], start: Start = spawn) -> int:
    """The process that `cowfs mount` starts, or becomes, or that is forked (forker.py)."""
    launcher = None
    held: dict[str, int] = {}
    if arguments[0] == "launcher":
        launcher = socket.socket(fileno=int(arguments[1]))
        os.set_inheritable(launcher.fileno(), False)
    else:
        for argument in arguments[1:]:
            name, _, fd = argument.rpartition("=")
            held[name] = int(fd)
            os.set_inheritable(held[name], False)
    inherited.drop_limits()
    inherited.drop_signals()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if launcher is not None:
        inherited.drop_scheduling()
    os.chdir("/")
    return Keeper(launcher, held, start).run()
