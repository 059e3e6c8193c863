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

It is one thread and one loop.  The names are those of `conversation.py`; what they mean is the
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

from cowfs import conversation, inherited, oom, threads
from cowfs.conversation import (
    CONTROL,
    DEVICE,
    FORWARDED,
    LEAVE,
    LOCK,
    LOG,
    ORDER,
    PERSISTENCE,
)
from cowfs.errors import InternalError, MountFailure
from cowfs.logline import log
from cowfs.servicemanager import Systemd

# The part behind the interpreter: -I, because a daemon of root's imports nothing from the directory
# or the PYTHONPATH of whoever called it.
DAEMON = ("-I", "-m", "cowfs.daemon")
KEEPER = ("-I", "-m", "cowfs.keeper")

# A daemon that served for less than this died quickly, and so many of them in a row are replaced at
# once; before the next ones there is a pause that doubles: seconds.
QUICK = 1.0
AT_ONCE = 3
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
# So many in a row that never served, and those who wait for the mount are told that it is dead.
HOPELESS = 10
# A daemon that says nothing for so long is stuck before it begins: seconds.
STARTING = 60.0
# A word of the daemon is waited for in so many steps: see `Patience`.
STEPS = 4
# Between the end of what a daemon says and its own, and how long a ping has no answer before a
# daemon may be one that cannot end: seconds.
ENDING = 0.5
# Between two looks whether it is one: seconds.
LOOK = 15.0
# Between the request for its stacks and the end of a daemon that is stuck: seconds.
STACKS = 0.5
# Messages of the daemon are taken in bunches, so that it is not interrupted for each: seconds.
BUNCH = 0.005
# What may lie in a daemon's socket, bytes; and how long one that takes nothing is waited for.
BUFFER = 8 << 20
HANDOVER = 5

_SO_SNDBUFFORCE = 32


class Patience:
    """How long a word of the daemon is waited for: seconds in which we ran, and it could.

    No clock tells for how long the two of us were suspended, paused or frozen.  So the time is made
    of steps, each of which begins when we look: such a pause takes one of them at most, and if we
    slept through a whole one ourselves, the counting begins again.
    """

    def __init__(self, seconds: float) -> None:
        self._step = seconds / STEPS
        self._left = STEPS
        #: When to look again.
        self.next = time.monotonic() + self._step

    def is_over(self) -> bool:
        """Whether all of it has passed; to be asked whenever `next` has come."""
        now = time.monotonic()
        if now < self.next:
            return False
        late = now - self.next
        self._left = STEPS if late >= self._step else self._left - 1
        self.next = now + self._step
        return self._left == 0


class Daemon:
    """A daemon that was started, with the pid and our end of its socket."""

    def __init__(self, command: list[str], *, apart: bool = True) -> None:
        """*apart*: in a process group of its own: Ctrl-C is for us, and we pass it on."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            theirs.set_inheritable(True)
            self.command = command
            self.pid = os.posix_spawn(
                command[0],
                [*command, str(theirs.fileno())],
                _environment(),
                setpgroup=0 if apart else os.getpgrp(),
                setsigmask=[],
                setsigdef=[*FORWARDED, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ],
            )
        self.sock = ours
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", HANDOVER, 0))
        try:
            ours.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, BUFFER)
        except OSError:
            pass  # not without CAP_NET_ADMIN
        self.started = time.monotonic()
        self.ready = False
        # As a standby: whether it has said that it can take over; and whether it did.
        self.able = False
        self.took_over = False
        # Set by its last word: the exit code that it wants us to have.
        self.bye: int | None = None
        # How long it may take before it serves; None: it does, or has nothing to serve yet.
        self.beginning: Patience | None = None
        self.watchdog = 0.0
        self.next_ping = 0.0
        # How long it may owe the answer to a ping; None: it owes none.
        self.silence: Patience | None = None
        self.killed = self.ended = False
        # When it is seen next whether it is one that cannot end.
        self.next_look = self.started + LOOK

    def tell(self, verb: str, argument: str = "", fd: int | None = None) -> bool:
        """False when it is gone, or takes nothing."""
        try:
            conversation.send_packet(self.sock, verb, argument, fd)
        except OSError:
            return False
        return True

    def give(self, held: dict[str, int], verb: str, argument: str = "") -> None:
        """All descriptors, and what to do with them.  One that does not take them is ended."""
        taken = all(self.tell("fd", name, fd) for name, fd in held.items())
        if not (taken and self.tell(verb, argument)):
            self.kill()

    def ping(self) -> None:
        """Ask whether it answers requests; again, in steps, until it has said so."""
        if self.silence is None:
            self.silence = Patience(self.watchdog)
        self.next_ping = self.silence.next
        self.next_look = time.monotonic() + ENDING
        self.tell("ping")

    def answered(self) -> None:
        """It has said that it does, or what its watchdog is."""
        self.silence = None
        self.next_ping = time.monotonic() + self.watchdog / STEPS

    def kill(self) -> None:
        """SIGKILL; whoever waits for its end sees soon whether it can."""
        self.killed = True
        self.watchdog = 0.0  # it has had its last chance
        self.beginning = self.silence = None
        self.next_look = time.monotonic() + ENDING
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        if not self.ended:  # what was reaped has no pid any more
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass


class Keeper:
    """One mount, from its first daemon to its last."""

    def __init__(self, launcher: socket.socket | None, held: dict[str, int]) -> None:
        self.launcher = launcher
        self.held = held
        self.command = [sys.executable, *DAEMON]
        self.daemon: Daemon | None = None
        # One of another version that has been asked whether it can take over, and who asked.
        self.standby: Daemon | None = None
        self.asking: socket.socket | None = None
        # What to go back to if the version that took over does not serve.
        self.fallback: list[str] | None = None
        self.deaths = 0
        self.restart_at = 0.0
        # What we were asked for by signals and is not done: what the daemon has been told of, and
        # what the next one will be.
        self.told: list[tuple[float, int]] = []
        self.untold: list[int] = []
        self.leaves = False
        # Started by an automounter: both of us are in its process group until the mount is made.
        self.automounted = launcher is not None and os.getpgrp() != os.getpid()
        self.exit_code: int | None = None
        self.notify = Systemd()

    def run(self) -> int:
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in (*FORWARDED, LEAVE, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        oom.protect()
        self._start()
        if self.launcher is not None and not self._take_order():
            if self.daemon is not None:
                self.daemon.sock.close()  # it leaves
                self._reap(self.daemon.pid)
            return 0
        if self.launcher is None:
            self.notify.was_given_back(self.held)
        self._store()
        if self.daemon is not None:
            self._hand_over(self.daemon)
        while self.exit_code is None:
            self._wait(reading)
            self._look_after()
            self.notify.settle(self.held)
        if not self.leaves:
            self._reply("ended")
        # What it still had the next start would go on with.
        self.notify.finish(self.held if self.leaves else {})
        return self.exit_code

    # ---------------------------------------------------------------- the loop

    def _wait(self, signals: int) -> None:
        poll = select.poll()
        poll.register(signals, select.POLLIN)
        sources: dict[int, Daemon] = {}
        for daemon in (self.daemon, self.standby):
            if daemon is not None:
                poll.register(daemon.sock, select.POLLIN)
                sources[daemon.sock.fileno()] = daemon
        if CONTROL in self.held and self.asking is None:
            poll.register(self.held[CONTROL], select.POLLIN)
        for fd, _event in poll.poll(self._patience()):
            if fd == signals:
                for number in os.read(signals, 64):
                    self._signalled(number)
            elif fd in sources:
                if sources[fd] in (self.daemon, self.standby):  # not ended just now
                    self._listen(sources[fd])
            else:
                self._accept()

    def _patience(self) -> float | None:
        """Milliseconds until something has to be done unasked."""
        times = [self.restart_at] if self.daemon is None else []
        daemon = self.daemon
        if daemon is not None and daemon.watchdog:
            times.append(daemon.next_ping)
        if daemon is not None and DEVICE in self.held:
            times.append(daemon.next_look)
        if (due := self.notify.due()) is not None:
            times.append(due)
        times += [beginning.next for _, beginning in self._beginners()]
        return max(0.0, min(times) - time.monotonic()) * 1000 + 1 if times else None

    def _beginners(self) -> list[tuple[Daemon, Patience]]:
        """Those that have to say something soon."""
        both = (self.daemon, self.standby)
        return [(one, one.beginning) for one in both if one is not None and one.beginning]

    def _look_after(self) -> None:
        """Start, ping or end the daemon, as the time has come."""
        now = time.monotonic()
        daemon = self.daemon
        if self.exit_code is not None:
            return
        for beginner, beginning in self._beginners():
            if beginning.is_over():
                log(f"the daemon {beginner.pid} does not begin to serve, and is ended")
                beginner.kill()
        if daemon is None:
            if now >= self.restart_at:
                self._start()
                if self.daemon is not None:
                    self._hand_over(self.daemon)
        elif DEVICE in self.held and now >= daemon.next_look and threads.cannot_end(daemon.pid):
            self._go_on_without(daemon)
        elif daemon.silence is not None and daemon.silence.is_over():
            self._end_stuck(daemon)
        elif daemon.watchdog and now >= daemon.next_ping:
            daemon.ping()
        elif now >= daemon.next_look:
            daemon.next_look = now + (ENDING if daemon.silence or daemon.killed else LOOK)

    def _signalled(self, number: int) -> None:
        if number == signal.SIGCHLD:
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    return
                if not pid:
                    return
                self._ended(pid, os.waitstatus_to_exitcode(status))
        elif number == LEAVE and self.notify.stores and DEVICE in self.held:
            self._leave()
        elif number in (*FORWARDED, LEAVE):
            self.notify.say("STOPPING=1")
            self.untold.append(signal.SIGTERM if number == LEAVE else number)
            # It would only kill one that is about to take over.
            if self.daemon is not None and (self.daemon.ready or DEVICE not in self.held):
                self._pass_on(self.daemon)

    def _pass_on(self, daemon: Daemon) -> None:
        """What we were asked for is the daemon's to do, and the next one's if this one dies of it
        or before it: until it says so, it is not done."""
        while self.untold:
            number = self.untold.pop(0)
            self.told.append((time.monotonic(), number))
            daemon.signal(number)

    def _leave(self) -> None:
        """The mount stays, and the next keeper goes on with it."""
        log("restarted: the mount stays, and its calls wait for the next daemon")
        self.leaves = True
        for daemon in (self.daemon, self.standby):
            if daemon is not None:
                daemon.signal(signal.SIGKILL)
                while not (_wait_for_end(daemon.pid, ENDING) or threads.cannot_end(daemon.pid)):
                    pass
                self._drain(daemon)
        self.exit_code = 0

    # ---------------------------------------------------------------- the daemon's life

    def _start(self) -> None:
        """Start a daemon, or plan another try."""
        try:
            self.daemon = Daemon(self.command, apart=not self.automounted)
        except OSError as error:
            why = f"cannot start {self.command[0]}: {error.strerror}"
            if DEVICE not in self.held:
                self._answer_failure(why)
                self.exit_code = InternalError.exit_code
                return
            self._plan_restart(why, ready=False, served=0.0)
            return
        oom.unprotect(self.daemon.pid)

    def _hand_over(self, daemon: Daemon) -> None:
        if DEVICE in self.held:  # the first one waits for its source, and then for a mount
            daemon.beginning = Patience(STARTING)
        daemon.give(self.held, "go", f"bound {os.getpid()}" if self.notify.stores else "")

    def _listen(self, daemon: Daemon) -> None:
        """Take what the daemon has said so far."""
        put = False
        for _ in range(1000):
            try:
                packet = conversation.receive_packet(daemon.sock, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                log(f"cannot read from the daemon: {error.strerror}")
                break
            if packet is None:
                # It is about to end, or closed its end: then it is none of ours any more.
                if not _wait_for_end(daemon.pid, ENDING):
                    daemon.signal(signal.SIGKILL)
                self._ended(*self._reap(daemon.pid))
                return
            verb, argument, fd = packet
            put |= verb in ("put", "drop")
            self._heard(daemon, verb, argument, fd)
        if put:
            time.sleep(BUNCH)

    def _heard(self, daemon: Daemon, verb: str, argument: str, fd: int | None) -> None:
        if verb == "put" and fd is not None:
            self._hold(argument, fd)
        elif verb == "drop":
            self._let_go(argument)
        elif verb == "pong":
            daemon.answered()
            daemon.next_look = time.monotonic() + LOOK
        elif verb == "watch":
            daemon.watchdog = float(argument)
            daemon.answered()
        elif verb == "ready":
            self._is_ready(daemon, argument)
        elif verb == "failed":
            self._answer(argument)
        elif verb == "bye":
            daemon.bye = int(argument)
        elif verb == "done":
            self.told = [told for told in self.told if told[1] != int(argument)]
        elif verb == "able" and daemon is self.standby:
            daemon.able = True
            if self.daemon is None:  # between two of the last version
                self._swap()
            else:
                self.daemon.kill()  # its end brings the other one on
        elif verb == "unable":
            self._reply(f"refused {argument}")
            if daemon is self.standby:
                daemon.kill()

    def _is_ready(self, daemon: Daemon, answer: str) -> None:
        daemon.ready = True
        daemon.started = time.monotonic()
        daemon.beginning = None
        self.fallback = None
        self._pass_on(daemon)
        if self.automounted:
            os.setsid()
            self.automounted = False
        self._answer(answer)
        self.notify.say(f"READY=1\nSTATUS=Mounted, served by process {daemon.pid}")
        if daemon.took_over:
            self._reply(f"ok {daemon.pid}")

    def _go_on_without(self, daemon: Daemon) -> None:
        """It was killed, but for a thread that ends when the next daemon has answered its call."""
        log(f"a thread of the daemon {daemon.pid} waits in the kernel, and is not waited for")
        self._gone(daemon.pid, "its end is under way")

    def _ended(self, pid: int, code: int) -> None:
        """A child has ended; whichever it was."""
        self._gone(pid, f"exit code {code}" if code >= 0 else f"killed by signal {-code}")

    def _gone(self, pid: int, how: str) -> None:
        if self.standby is not None and pid == self.standby.pid:
            standby, self.standby = self.standby, None
            standby.ended = True
            self._drain(standby)
            standby.sock.close()
            self._reply(f"refused the new version does not start ({how}): see the log")
            return
        daemon = self.daemon
        if daemon is None or pid != daemon.pid:
            return
        daemon.ended = True
        self._drain(daemon)
        daemon.sock.close()
        self.daemon = None
        # A version that says of nothing that it is done has done, or refused, what it was told for
        # longer: nobody expects it any more.
        now = time.monotonic()
        lost = [number for since, number in self.told if now - since < PERSISTENCE + STARTING]
        self.told, self.untold = [], lost + self.untold
        if daemon.bye is not None:
            self.exit_code = daemon.bye
            return
        if DEVICE not in self.held and daemon.ready:
            log(
                f"the daemon {daemon.pid} ended ({how}), and this kernel lets no other one go on "
                "(Linux 6.9 does): the mount answers ENOTCONN; unmount it with cowfs umount, and "
                "mount it again"
            )
            self.exit_code = MountFailure.exit_code
            return
        if DEVICE not in self.held:
            self._answer_failure(
                f"the daemon died before the mount was ready ({how}): what it said is above; "
                "cowfs doctor tells what this machine lacks"
            )
            self.exit_code = InternalError.exit_code
            return
        if self.standby is not None and self.standby.able:
            self._swap()
            return
        served = time.monotonic() - daemon.started if daemon.ready else 0.0
        how = f"the daemon {daemon.pid} ended ({how}) after {served:.1f} s"
        self._plan_restart(how, ready=daemon.ready, served=served)

    def _drain(self, daemon: Daemon) -> None:
        """What it said before it died counts."""
        while True:
            try:
                packet = conversation.receive_packet(daemon.sock, socket.MSG_DONTWAIT)
            except OSError:
                return
            if packet is None:
                return
            self._heard(daemon, *packet)

    def _plan_restart(self, how: str, *, ready: bool, served: float) -> None:
        self.deaths = 0 if served >= QUICK else self.deaths + 1
        if not ready and self.fallback is not None:
            log("the new version does not serve: going back to the last one")
            self._reply("refused it does not serve: the last version does again, see the log")
            self.command, self.fallback = self.fallback, None
        elif self.deaths >= HOPELESS and not ready:
            log(f"{how}, and none can serve: giving the mount up")
            self.exit_code = InternalError.exit_code
            return
        again = min(self.deaths - AT_ONCE - 1, 10)
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0**again) if again >= 0 else 0.0
        self.restart_at = time.monotonic() + pause
        next_one = f"the next one starts in {pause:g} s" if pause else "starting the next one"
        log(f"{how}: {next_one}")
        self.notify.say("STATUS=The daemon has ended, and is started again")

    def _end_stuck(self, daemon: Daemon) -> None:
        log(
            f"the daemon {daemon.pid} has answered nothing for {daemon.watchdog:g} s and is "
            "replaced; it was here:"
        )
        for task, state, frames in threads.stacks(daemon.pid):
            log(f"  thread {task}, state {state}: {' < '.join(frames[:8])}")
        # It writes the stacks of its Python threads (faulthandler), if it still can.
        daemon.signal(signal.SIGUSR2)
        daemon.signal(signal.SIGCONT)
        time.sleep(STACKS)
        daemon.kill()

    # ---------------------------------------------------------------- what is held

    def _hold(self, name: str, fd: int) -> None:
        if name in self.held:
            os.close(self.held[name])
        self.held[name] = fd
        if name == DEVICE:
            if self.daemon is not None:
                self.daemon.beginning = Patience(STARTING)  # the mount is made: it begins to serve
            self._store()
        elif DEVICE in self.held:
            self.notify.change(name)
        if name == LOG:
            os.dup2(fd, 1)
            os.dup2(fd, 2)

    def _store(self) -> None:
        """Give all of it to the service manager, once there is a mount to go on with: without one
        its duplicate of the lock would keep the copy from the next start.
        """
        if DEVICE in self.held:
            for name in self.held:
                self.notify.change(name)

    def _let_go(self, name: str) -> None:
        fd = self.held.pop(name, None)
        if fd is not None:
            os.close(fd)
            self.notify.change(name)

    # ---------------------------------------------------------------- the launcher

    def _take_order(self) -> bool:
        assert self.launcher is not None
        try:
            order = conversation.receive_order(self.launcher)
        except (OSError, EOFError, ValueError) as error:
            log(f"what the launcher said makes no sense: {error}")
            return False
        if order is None:
            return False
        text, self.held[LOCK] = order
        fd = os.memfd_create("cowfs-order", os.MFD_CLOEXEC)
        os.write(fd, text)
        self.held[ORDER] = fd
        return True

    def _answer(self, line: str) -> None:
        """Once: what comes later is nobody's business."""
        if self.launcher is None:
            return
        launcher, self.launcher = self.launcher, None
        try:
            with launcher:
                launcher.sendall(conversation.encoded(f"{line}\n"))
        except OSError:
            if self.daemon is not None:
                self.daemon.tell("undo")  # who wanted the mount is gone

    def _answer_failure(self, problem: str) -> None:
        import json

        if self.launcher is None:
            log(problem)
        self._answer(json.dumps({"error": problem, "exit_code": InternalError.exit_code}))

    # ---------------------------------------------------------------- another version

    def _accept(self) -> None:
        """Somebody asks for an upgrade: one packet, the new command, its words separated by NUL."""
        try:
            with socket.socket(fileno=os.dup(self.held[CONTROL])) as listener:
                asking, _ = listener.accept()
            asking.settimeout(1)
            words = os.fsdecode(asking.recv(conversation.MAX_PACKET)).split("\0")
        except OSError:
            return
        self.asking = asking
        if self.standby is not None or self.daemon is None or not self.daemon.ready:
            self._reply("refused the daemon is just being replaced: try again")
            return
        try:
            self.standby = Daemon(words)
        except OSError as error:
            self._reply(f"refused cannot start {words[0]}: {error.strerror}")
            return
        oom.unprotect(self.standby.pid)
        self.standby.beginning = Patience(STARTING)
        self.standby.give(self.held, "check")

    def _swap(self) -> None:
        """The one that has ended makes room for the one that waits."""
        assert self.standby is not None
        self.daemon, self.standby = self.standby, None
        self.daemon.took_over = True
        self.fallback, self.command = self.command, self.daemon.command
        self.deaths = 0
        self._hand_over(self.daemon)

    def _reply(self, text: str) -> None:
        if self.asking is not None:
            asking, self.asking = self.asking, None
            try:
                with asking:
                    asking.sendall(conversation.encoded(text))
            except OSError:
                pass

    def _reap(self, pid: int) -> tuple[int, int]:
        try:
            _, status = os.waitpid(pid, 0)
        except ChildProcessError:
            return pid, 0
        return pid, os.waitstatus_to_exitcode(status)


def _wait_for_end(pid: int, patience: float) -> bool:
    """Whether a child of ours ends within so many seconds."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return True
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    ended = bool(poll.poll(patience * 1000))
    os.close(pidfd)
    return ended


def _environment() -> dict[str, str]:
    """Ours, without what is for us alone."""
    ours = inherited.OF_THE_MANAGER
    return {name: value for name, value in os.environ.items() if name not in ours}


def main(arguments: list[str]) -> int:
    """The process that `cowfs mount` starts, or becomes."""
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
    return Keeper(launcher, held).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
