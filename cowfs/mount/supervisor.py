"""What a keeper does, and when: two state machines, without processes, descriptors or a clock.

One is the mount, with the daemon that serves it or will. The other is an upgrade, with a second
daemon of another version that stands by. `Supervisor.handle()` is told of what has happened to a
daemon, what it has said and what somebody asks for; `tick()` of the time. What is to be done goes
to `Actions`, which the keeper's loop implements, and which never calls back: what comes of it is
the next event.

    state of the mount
    MOUNTING      the first daemon has no mount yet: it waits for the launcher, maybe for hours
    ALONE         it serves, and no other one could go on: this kernel does not let it
    STARTING      there is a mount, and a daemon that does not serve it yet
    SERVING       it serves
    ASKED         it serves, and owes the answer to a ping
    ENDING        the end of the daemon is waited for; it is killed at the deadline, or was already
    PAUSED        there is no daemon; the next one starts at the deadline
    LEAVING       the daemon has unmounted it and put the copy away, and is about to end
    HANDING_OFF   all daemons are killed, and the mount is left to the next keeper

    state of an upgrade
    IDLE          nobody asks for one
    CHECKING      the other version is asked whether it can take over
    ABLE          it can, and the end of the daemon that serves is waited for
    DISMISSED     it cannot, and its own end is waited for
    TAKING_OVER   it is the mount's daemon by now, and does not serve yet

The tables below have the states above the columns, and an event before each row. Where they meet is
the method that is called, without its underscore; a dot where the event means nothing; a dash where
it cannot come: then it is logged, and means nothing either, because a keeper that raised an
exception would take the mount with it. docs/surviving.md tells what follows upon each state.
"""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from enum import Enum

from cowfs.mount import conversation
from cowfs.mount.conversation import CHECK, GO, PERSISTENCE, PING
from cowfs.mount.deadlines import STEPS, Deadline, Patience
from cowfs.system import remedy
from cowfs.system.errors import InternalError, MountFailure

MOUNT_TABLE = """
          MOUNTING  ALONE  STARTING  SERVING   ASKED     ENDING    PAUSED    LEAVING  HANDING_OFF
mounted   begin     -      -         -         -         -         -         -        -
ready     alone     -      serve     -         -         .         -         -        .
failed    answer    .      answer    .         .         answer    -         -        .
watch     -         -      watch     watch     -         .         -         -        .
pong      -         -      -         .         answered  .         -         .        .
done      done      done   done      done      done      done      -         done     .
bye       bye       bye    bye       bye       bye       bye       -         -        .
closed    wait      wait   closed    closed    closed    .         -         wait     .
exited    fail      lose   replace   replace   replace   replace   -         finish   left
able      -         -      end       end       end       .         take_over .        .
stop      stop      stop   keep      stop      stop      keep      keep      .        .
hand_off  stop      stop   hand_off  hand_off  hand_off  hand_off  hand_off  .        .
step      -         -      .         -         again     -         -         .        -
deadline  kill      kill   slow      ask       stuck     kill      start     kill     -
"""

UPGRADE_TABLE = """
          IDLE      CHECKING  ABLE      DISMISSED  TAKING_OVER
upgrade   check     refuse    refuse    refuse     refuse
able      -         able      -         .          -
unable    -         unable    -         .          -
closed    -         closed    closed    .          -
exited    -         exited    exited    exited     -
step      -         .         .         -          -
deadline  -         slow      slow      kill       -
"""

# A daemon that served for less than QUICK seconds died quickly. AT_ONCE of them in a row are
# replaced at once; before each further one there is a pause, which doubles: seconds.
QUICK = 1.0
AT_ONCE = 3
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
# Give up after this many consecutive daemons that never became ready.
HOPELESS = 10
# How long a daemon may take to become ready, or to say whether it could: seconds.
STARTING = 60.0
# How long a daemon may go on after it has closed its socket, and when to look for the first time
# after SIGKILL whether it is one that cannot end: seconds.
ENDING = 0.5
# Between two such looks at a daemon that is not expected to end: seconds.
LOOK = 15.0
# Between the request for its stacks and the end of a daemon that is stuck: seconds.
STACKS = 0.5


class Role(Enum):
    """The daemons that a keeper has."""

    DAEMON = "the mount's"
    STANDBY = "of another version, which does not serve"


class Event(Enum):
    """What happens, as the rows of the tables call it.  Most come with an argument."""

    # What a daemon says: the verbs of conversation.py, with their arguments.
    READY = conversation.READY
    FAILED = conversation.FAILED
    WATCH = conversation.WATCH
    PONG = conversation.PONG
    DONE = conversation.DONE
    BYE = conversation.BYE
    ABLE = conversation.ABLE
    UNABLE = conversation.UNABLE
    # It has given the keeper the device: another daemon can go on with the mount.
    MOUNTED = "mounted"
    # It has closed its socket; it has ended, and the argument says how.
    CLOSED = "closed"
    EXITED = "exited"
    # An unmount is asked for; or to leave the mount to the next keeper, which comes only where a
    # service manager has all that is held.  The argument is the number of the signal that a daemon
    # is to get for it.
    STOP = "stop"
    HAND_OFF = "hand_off"
    # Another version is to take over; its command, the words separated by NUL.
    UPGRADE = "upgrade"
    # A part of a patience has passed; a deadline has come.
    STEP = "step"
    DEADLINE = "deadline"


class Mount(Enum):
    """The states of the mount: see above."""

    MOUNTING = 1
    ALONE = 2
    STARTING = 3
    SERVING = 4
    ASKED = 5
    ENDING = 6
    PAUSED = 7
    LEAVING = 8
    HANDING_OFF = 9


class Upgrade(Enum):
    """The states of an upgrade: see above."""

    IDLE = 1
    CHECKING = 2
    ABLE = 3
    DISMISSED = 4
    TAKING_OVER = 5


NOTHING, IMPOSSIBLE = ".", "-"

# The states in which to look whether the daemon is one that cannot end (threads.py), and after how
# many seconds to look again.
LOOKS: dict[Enum, float] = {
    Mount.STARTING: LOOK,
    Mount.SERVING: LOOK,
    Mount.ASKED: ENDING,
    Mount.ENDING: ENDING,
    Mount.LEAVING: ENDING,
    Mount.HANDING_OFF: ENDING,
}


def parse(text: str, states: type[Enum]) -> dict[tuple[Event, Enum], str]:
    """One of the tables above."""
    header, *rows = text.strip().splitlines()
    columns = [states[name] for name in header.split()]
    return {
        (Event(event), state): cell
        for event, *cells in map(str.split, rows)
        for state, cell in zip(columns, cells, strict=True)
    }


class Actions(ABC):
    """What a supervisor has somebody do.  None of it calls the supervisor."""

    @abstractmethod
    def start(self, role: Role, command: list[str]) -> int:
        """A daemon; its pid.  OSError: there is none."""

    @abstractmethod
    def give(self, role: Role, verb: str) -> bool:
        """All that is held, and what to do with it; whether the daemon has taken it."""

    @abstractmethod
    def tell(self, role: Role, verb: str) -> None:
        """One of the verbs of conversation.py."""

    @abstractmethod
    def signal(self, role: Role, number: int) -> None:
        """To a daemon, unless it has ended."""

    @abstractmethod
    def forget(self, role: Role) -> None:
        """It has ended."""

    @abstractmethod
    def promote(self) -> None:
        """What was the standby is the mount's daemon."""

    @abstractmethod
    def log(self, text: str) -> None:
        """A line for the administrator."""

    @abstractmethod
    def log_threads(self, role: Role) -> None:
        """Where each thread of a daemon is."""

    @abstractmethod
    def answer(self, line: str) -> None:
        """To the launcher, which waits for the mount; only the first answer is sent."""

    @abstractmethod
    def fail(self, problem: str) -> None:
        """To the launcher, that the mount will never answer; to the log if no launcher waits."""

    @abstractmethod
    def leave_group(self) -> None:
        """The mount is made: we may leave the process group of an automounter."""

    @abstractmethod
    def reply(self, text: str) -> None:
        """To `cowfs upgrade`, once."""

    @abstractmethod
    def notify(self, text: str) -> None:
        """To the service manager: sd_notify(3)."""


class Machine:
    """A state, how long it lasts at most, and the table of what happens in it.

    A method that the table names finds the event's argument and its time in `argument` and `now`.
    """

    def __init__(
        self, do: Actions, role: Role, table: dict[tuple[Event, Enum], str], state: Enum
    ) -> None:
        self.do = do
        self.role = role
        self.state = state
        self.deadline: Deadline | None = None
        #: Of the daemon; 0: there is none.
        self.pid = 0
        self.argument = ""
        self.now = 0.0
        self._table = table

    def take(self, event: Event, argument: str, now: float) -> None:
        """Do what the table says."""
        self.argument, self.now = argument, now
        cell = self._table.get((event, self.state), IMPOSSIBLE)
        if cell == IMPOSSIBLE:
            self.do.log(f"{event.value!r} was not expected in {self.state.name}, and is ignored")
        elif cell != NOTHING:
            getattr(self, f"_{cell}")()

    def take_time(self, now: float) -> None:
        """The event that is due, if any."""
        if self.deadline is None or now < self.deadline.next:
            return
        if self.deadline.is_over(now):
            self.deadline = None
            self.take(Event.DEADLINE, "", now)
        else:
            self.take(Event.STEP, "", now)

    def _enter(self, state: Enum, deadline: Deadline | None = None) -> None:
        self.state = state
        self.deadline = deadline

    def _kill(self) -> None:
        self._enter(self.state)
        self.do.signal(self.role, signal.SIGKILL)

    def _is_too_slow(self) -> None:
        self.do.log(f"the daemon {self.pid} does not begin to serve, and is ended")


class Supervisor(Machine):
    """The mount, with the upgrade beside it."""

    def __init__(self, do: Actions, command: list[str]) -> None:
        """*command*: what starts a daemon."""
        super().__init__(do, Role.DAEMON, parse(MOUNT_TABLE, Mount), Mount.PAUSED)
        self.upgrade = UpgradeMachine(do, self)
        self.command = command
        #: Of the keeper, when all is over; and whether the mount is left to the next one then.
        self.exit_code: int | None = None
        self.hands_off = False
        #: When to look whether the daemon cannot end; None: never.
        self.look_at: float | None = None
        self._requests = Requests()
        # Daemons in a row that died quickly.
        self._deaths = 0
        self._watchdog = 0.0
        self._served_since: float | None = None
        # What the daemon wants ours to be, by its last word.
        self._last_word = 0

    # ---------------------------------------------------------------- for the loop

    def mount(self, pid: int, now: float) -> None:
        """The beginning of a mount, with a daemon that was started before there was an order."""
        self.pid, self.now = pid, now
        self._enter(Mount.MOUNTING)
        if not self.do.give(self.role, GO):
            self._kill()

    def resume(self, now: float) -> None:
        """The beginning where there is a mount already: a daemon starts at once."""
        self._enter(Mount.PAUSED, Deadline(now))

    def handle(self, event: Event, argument: str = "", *, now: float, role: Role) -> None:
        """Something has happened to a daemon, or it has said something, or we were asked."""
        if self.exit_code is None:
            (self if role is Role.DAEMON else self.upgrade).take(event, argument, now)
            self._end_if_handed_off()

    def tick(self, now: float) -> None:
        """Some time has passed."""
        for machine in (self, self.upgrade):
            if self.exit_code is None:
                machine.take_time(now)
                self._end_if_handed_off()

    def due(self) -> float | None:
        """When there is something to do unasked; None: never."""
        deadlines = [one.deadline.next for one in (self, self.upgrade) if one.deadline is not None]
        looks = [] if self.look_at is None else [self.look_at]
        return min(deadlines + looks, default=None)

    def looked(self, now: float) -> None:
        """The daemon is not one that cannot end."""
        self.look_at = now + LOOKS[self.state] if self.state in LOOKS else None

    # ---------------------------------------------------------------- from the start to serving

    def _start(self) -> None:
        try:
            self.pid = self.do.start(self.role, self.command)
        except OSError as error:
            self._plan_restart(f"cannot start {self.command[0]}: {error.strerror}", None)
            return
        self._hand_over()

    def _hand_over(self) -> None:
        self._watchdog, self._served_since = 0.0, None
        self._begin()
        if not self.do.give(self.role, GO):
            self._end()

    def _begin(self) -> None:
        self._enter(Mount.STARTING, Patience(STARTING, self.now))

    def _serve(self) -> None:
        self._served_since = self.now
        self._enter(Mount.SERVING, self._next_ping())
        self._pass_on()
        self._say_ready()
        self.upgrade.serves(self.pid)

    def _alone(self) -> None:
        self._enter(Mount.ALONE)
        self._say_ready()

    def _say_ready(self) -> None:
        self.do.leave_group()
        self.do.answer(self.argument)
        self.do.notify(f"READY=1\nSTATUS=Mounted, served by process {self.pid}")

    def _answer(self) -> None:
        self.do.answer(self.argument)

    def _slow(self) -> None:
        self._is_too_slow()
        self._end()

    # ---------------------------------------------------------------- whether it answers

    def _watch(self) -> None:
        self._watchdog = float(self.argument)
        if self.state is Mount.SERVING:
            self.deadline = self._next_ping()

    def _next_ping(self) -> Deadline | None:
        return Deadline(self.now + self._watchdog / STEPS) if self._watchdog else None

    def _ask(self) -> None:
        self._enter(Mount.ASKED, Patience(self._watchdog, self.now))
        self._again()

    def _again(self) -> None:
        self.do.tell(self.role, PING)

    def _answered(self) -> None:
        self._enter(Mount.SERVING, self._next_ping())

    def _stuck(self) -> None:
        self.do.log(
            f"the daemon {self.pid} has answered nothing for {self._watchdog:g} s and is "
            "replaced; it was here:"
        )
        self.do.log_threads(self.role)
        # It writes the stacks of its Python threads (faulthandler), if it still can.
        self.do.signal(self.role, signal.SIGUSR2)
        self.do.signal(self.role, signal.SIGCONT)
        self._enter(Mount.ENDING, Deadline(self.now + STACKS))

    # ---------------------------------------------------------------- what is asked of us

    def _stop(self) -> None:
        self._keep()
        self._pass_on()

    def _keep(self) -> None:
        """A daemon that is about to take over would only be killed by it: later."""
        self.do.notify("STOPPING=1")
        self._requests.add(int(self.argument))

    def _pass_on(self) -> None:
        for number in self._requests.passed_on(self.now):
            self.do.signal(self.role, number)

    def _done(self) -> None:
        self._requests.done(int(self.argument))

    def _hand_off(self) -> None:
        self.do.log("restarted: the mount stays, and its calls wait for the next daemon")
        self._enter(Mount.HANDING_OFF)
        if self.pid:
            self._kill()
        self.upgrade.hand_off()

    def _end_if_handed_off(self) -> None:
        if self.state is Mount.HANDING_OFF and not (self.pid or self.upgrade.pid):
            self.hands_off = True
            self.exit_code = 0

    # ---------------------------------------------------------------- the end of a daemon

    def _bye(self) -> None:
        self._last_word = int(self.argument)
        patience = Patience(self._watchdog, self.now) if self._watchdog else None
        self._enter(Mount.LEAVING, patience)

    def _wait(self) -> None:
        self._enter(self.state, Deadline(self.now + ENDING))

    def _closed(self) -> None:
        self._enter(Mount.ENDING, Deadline(self.now + ENDING))

    def _end(self) -> None:
        self._enter(Mount.ENDING)
        self._kill()

    def _finish(self) -> None:
        self._gone()
        self.exit_code = self._last_word

    def _left(self) -> None:
        self._gone()

    def _fail(self) -> None:
        self._gone()
        self.do.fail(
            f"the daemon died before the mount was ready ({self.argument}): what it said is above; "
            f"{remedy.command('cowfs doctor')} tells what this machine lacks"
        )
        self.exit_code = InternalError.exit_code

    def _lose(self) -> None:
        pid = self._gone()
        self.do.log(
            f"the daemon {pid} ended ({self.argument}), and this kernel lets no other one "
            "go on (Linux 6.9 does): the mount answers ENOTCONN until it is unmounted; then mount "
            "it again"
        )
        self.exit_code = MountFailure.exit_code

    def _replace(self) -> None:
        pid = self._gone()
        if self.upgrade.state is Upgrade.ABLE:
            self._take_over()
            return
        since = self._served_since
        served = None if since is None else self.now - since
        self._plan_restart(
            f"the daemon {pid} ended ({self.argument}) after {served or 0:.1f} s", served
        )

    def _gone(self) -> int:
        """What its pid was."""
        self.do.forget(self.role)
        self._requests.lost(self.now)
        pid, self.pid = self.pid, 0
        return pid

    def _plan_restart(self, how: str, served: float | None) -> None:
        """*served*: for how many seconds the last one did; None: never."""
        self._deaths = 0 if served is not None and served >= QUICK else self._deaths + 1
        if served is None and (fallback := self.upgrade.way_back()):
            self.command = fallback
        elif served is None and self._deaths >= HOPELESS:
            self.do.log(f"{how}, and none can serve: giving the mount up")
            self.exit_code = InternalError.exit_code
            return
        pause = self._pause()
        self._enter(Mount.PAUSED, Deadline(self.now + pause))
        next_one = f"the next one starts in {pause:g} s" if pause else "starting the next one"
        self.do.log(f"{how}: {next_one}")
        self.do.notify("STATUS=The daemon has ended, and is started again")

    def _pause(self) -> float:
        again = min(self._deaths - AT_ONCE - 1, 10)
        return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0**again) if again >= 0 else 0.0

    def _take_over(self) -> None:
        """The one that has ended makes room for the one that stands by."""
        self.do.promote()
        self.pid, self.command = self.upgrade.take_over(self.command)
        self._deaths = 0
        self._hand_over()

    def _enter(self, state: Enum, deadline: Deadline | None = None) -> None:
        super()._enter(state, deadline)
        self.looked(self.now)


class UpgradeMachine(Machine):
    """Another version's daemon, from the question whether it can take over until it serves."""

    def __init__(self, do: Actions, mount: Supervisor) -> None:
        super().__init__(do, Role.STANDBY, parse(UPGRADE_TABLE, Upgrade), Upgrade.IDLE)
        self._mount = mount
        # What starts the other version; what to go back to if that does not serve.
        self._command: list[str] = []
        self._fallback: list[str] = []

    # ---------------------------------------------------------------- for the mount

    def take_over(self, command: list[str]) -> tuple[int, list[str]]:
        """Pid and command of the new daemon.  *command*: of the version that it replaces."""
        self._enter(Upgrade.TAKING_OVER)
        pid, self.pid = self.pid, 0
        self._fallback = command
        return pid, self._command

    def serves(self, pid: int) -> None:
        """A daemon serves: from now on, one that took over is started again like any other."""
        if self.state is Upgrade.TAKING_OVER:
            self._enter(Upgrade.IDLE)
            self.do.reply(f"{conversation.OK} {pid}")

    def way_back(self) -> list[str] | None:
        """A daemon has ended and never served: what to start next if it was the one that took over;
        None: it was not."""
        if self.state is not Upgrade.TAKING_OVER:
            return None
        self._enter(Upgrade.IDLE)
        self.do.log("the new version does not serve: going back to the last one")
        self._refuse_for("it does not serve: the last version does again, see the log")
        return self._fallback

    def hand_off(self) -> None:
        """The next keeper goes on, and knows of no upgrade."""
        if self.pid:
            self._dismiss()
        self.do.reply(conversation.ENDED)

    # ---------------------------------------------------------------- the question

    def _check(self) -> None:
        if self._mount.state not in (Mount.SERVING, Mount.ASKED):
            self._refuse()
            return
        self._command = self.argument.split("\0")
        try:
            self.pid = self.do.start(self.role, self._command)
        except OSError as error:
            self._refuse_for(f"cannot start {self._command[0]}: {error.strerror}")
            return
        self._enter(Upgrade.CHECKING, Patience(STARTING, self.now))
        if not self.do.give(self.role, CHECK):
            self._dismiss()

    def _refuse(self) -> None:
        self._refuse_for("the daemon is just being replaced: try again")

    def _refuse_for(self, reason: str) -> None:
        self.do.reply(f"{conversation.REFUSED} {reason}")

    def _able(self) -> None:
        # Its patience goes on: the other one has to end within that.
        self._enter(Upgrade.ABLE, self.deadline)
        self._mount.take(Event.ABLE, "", self.now)

    def _unable(self) -> None:
        self._refuse_for(self.argument)
        self._dismiss()

    # ---------------------------------------------------------------- its end

    def _slow(self) -> None:
        self._is_too_slow()
        self._dismiss()

    def _dismiss(self) -> None:
        self._enter(Upgrade.DISMISSED)
        self._kill()

    def _closed(self) -> None:
        self._enter(Upgrade.DISMISSED, Deadline(self.now + ENDING))

    def _exited(self) -> None:
        self._enter(Upgrade.IDLE)
        self.pid = 0
        self.do.forget(self.role)
        self._refuse_for(f"the new version does not start ({self.argument}): see the log")


class Requests:
    """Signals that ask for an unmount: each is kept until a daemon says that it is done.

    If a daemon dies before it has said so, the next one gets the signal.  Old versions never say
    that they are done; a signal that such a daemon was sent long enough ago counts as done.
    """

    def __init__(self) -> None:
        self._told: list[tuple[float, int]] = []
        self._untold: list[int] = []

    def add(self, number: int) -> None:
        """Somebody has sent us this signal."""
        self._untold.append(number)

    def passed_on(self, now: float) -> list[int]:
        """The signals to send to the daemon; from now on they count as sent."""
        numbers, self._untold = self._untold, []
        self._told += [(now, number) for number in numbers]
        return numbers

    def done(self, number: int) -> None:
        """The daemon has unmounted, or said that the mount is in use."""
        self._told = [told for told in self._told if told[1] != number]

    def lost(self, now: float) -> None:
        """The daemon has ended."""
        recent = [number for since, number in self._told if now - since < PERSISTENCE + STARTING]
        self._told, self._untold = [], recent + self._untold
