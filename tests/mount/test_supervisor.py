"""What a keeper does and when, without processes: the tables, and what comes of the states."""

from __future__ import annotations

import random
import re
import signal
from enum import Enum
from pathlib import Path

import pytest

from cowfs.mount import supervisor
from cowfs.mount.supervisor import (
    AT_ONCE,
    ENDING,
    HOPELESS,
    IMPOSSIBLE,
    LONGEST_PAUSE,
    LOOK,
    MOUNT_TABLE,
    NOTHING,
    QUICK,
    STACKS,
    STARTING,
    UPGRADE_TABLE,
    Actions,
    Event,
    Machine,
    Mount,
    Role,
    Supervisor,
    Upgrade,
    UpgradeMachine,
    parse,
)
from cowfs.system.errors import InternalError, MountFailure

SURVIVING = Path(__file__).parent.parent.parent / "docs" / "surviving.md"

# What neither of the tables is about.
OF_THE_UPGRADE = {Event.UNABLE, Event.UPGRADE}
TABLES = [
    (MOUNT_TABLE, Mount, set(Event) - OF_THE_UPGRADE, Supervisor),
    (
        UPGRADE_TABLE,
        Upgrade,
        OF_THE_UPGRADE | {Event.ABLE, Event.CLOSED, Event.EXITED, Event.STEP, Event.DEADLINE},
        UpgradeMachine,
    ),
]


@pytest.mark.parametrize(("text", "states", "events", "machine"), TABLES)
def test_the_table_says_of_every_event_in_every_state_what_happens(
    text: str, states: type[Enum], events: set[Event], machine: type[Machine]
) -> None:
    table = parse(text, states)
    assert set(table) == {(event, state) for event in events for state in states}
    for cell in set(table.values()) - {NOTHING, IMPOSSIBLE}:
        assert callable(getattr(machine, f"_{cell}"))


EVENTS_OF: dict[type[Enum], list[Event]] = {
    states: [event for event in Event if event in events] for _, states, events, _ in TABLES
}
MACHINES: dict[Role, type[Enum]] = {Role.DAEMON: Mount, Role.STANDBY: Upgrade}
MACHINE_OF = {states: role for role, states in MACHINES.items()}


class Kept(Actions):
    """A supervisor, the time, and what it has had done since the last look."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.actions: list[tuple[object, ...]] = []
        self.logged: list[str] = []
        self.pid = 100
        self.missing: list[str] = []
        self.takes = True
        # Which daemons there are, and which of them were not killed.
        self.processes: set[Role] = set()
        self.lively: set[Role] = set()
        self.supervisor = Supervisor(self, ["old"])

    def tell_supervisor(
        self, event: Event, argument: str = "", role: Role = Role.DAEMON
    ) -> list[tuple[object, ...]]:
        """What it has had done for this event."""
        self.actions = []
        self.supervisor.handle(event, argument, now=self.now, role=role)
        return self.actions

    def standby(self, event: Event, argument: str = "") -> list[tuple[object, ...]]:
        return self.tell_supervisor(event, argument, Role.STANDBY)

    def pass_time(self, seconds: float) -> list[tuple[object, ...]]:
        """What it has had done until then; it is called when it wants to be."""
        self.actions = []
        end = self.now + seconds
        while (due := self.supervisor.due()) is not None and due <= end:
            self.now = max(self.now, due)
            if self.supervisor.look_at is not None and self.now >= self.supervisor.look_at:
                self.actions.append(("look",))
                self.supervisor.looked(self.now)
            self.supervisor.tick(self.now)
        self.now = end
        return self.actions

    def states(self) -> tuple[Enum, Enum]:
        return self.supervisor.state, self.supervisor.upgrade.state

    # What the supervisor calls.

    def start(self, role: Role, command: list[str]) -> int:
        if command == self.missing:
            raise FileNotFoundError(2, "No such file or directory")
        self.actions.append(("start", role, *command))
        self.pid += 1
        self.processes.add(role)
        self.lively.add(role)
        return self.pid

    def give(self, role: Role, verb: str) -> bool:
        self.actions.append(("give", role, verb))
        return self.takes

    def tell(self, role: Role, verb: str) -> None:
        self.actions.append(("tell", role, verb))

    def signal(self, role: Role, number: int) -> None:
        self.actions.append(("signal", role, number))
        if number == signal.SIGKILL:
            self.lively.discard(role)

    def forget(self, role: Role) -> None:
        self.actions.append(("forget", role))
        self.processes.remove(role)
        self.lively.discard(role)

    def promote(self) -> None:
        self.actions.append(("promote",))
        assert DAEMON not in self.processes
        self.processes = {DAEMON}
        self.lively = {DAEMON} if STANDBY in self.lively else set()

    def log(self, text: str) -> None:
        self.logged.append(text)

    def log_threads(self, role: Role) -> None:
        self.actions.append(("log_threads", role))

    def answer(self, line: str) -> None:
        self.actions.append(("answer", line))

    def fail(self, problem: str) -> None:
        self.actions.append(("fail", problem))

    def leave_group(self) -> None:
        self.actions.append(("leave_group",))

    def reply(self, text: str) -> None:
        self.actions.append(("reply", text))

    def notify(self, text: str) -> None:
        self.actions.append(("notify", text))


DAEMON, STANDBY = Role.DAEMON, Role.STANDBY
KILL = ("signal", DAEMON, signal.SIGKILL)
KILL_STANDBY = ("signal", STANDBY, signal.SIGKILL)
TERM = ("signal", DAEMON, signal.SIGTERM)
PING = ("tell", DAEMON, "ping")
LOOKED = ("look",)
SIGTERM = str(int(signal.SIGTERM))


def mounting() -> Kept:
    """The first daemon, which has no mount yet."""
    kept = Kept()
    kept.supervisor.mount(kept.start(DAEMON, ["old"]), kept.now)
    return kept


def resuming() -> Kept:
    """A mount, with a daemon that does not serve it yet."""
    kept = Kept()
    kept.supervisor.resume(kept.now)
    kept.pass_time(0)
    return kept


def serving(watchdog: float = 0) -> Kept:
    kept = resuming()
    if watchdog:
        kept.tell_supervisor(Event.WATCH, str(watchdog))
    kept.tell_supervisor(Event.READY, "{}")
    return kept


def checking() -> Kept:
    """A mount that is served, and another version that is asked."""
    kept = serving()
    kept.standby(Event.UPGRADE, "new\0-v")
    return kept


def asked() -> Kept:
    kept = serving(watchdog=8)
    kept.pass_time(2)
    return kept


def after(kept: Kept, *events: Event) -> Kept:
    """One to which this has happened as well."""
    for event in events:
        kept.tell_supervisor(event, ARGUMENTS.get(event, ""))
    return kept


def stood_by(*events: Event) -> Kept:
    """One with another version of which this was heard."""
    kept = checking()
    for event in events:
        kept.standby(event, ARGUMENTS.get(event, ""))
    return kept


ARGUMENTS = {
    Event.WATCH: "8",
    Event.DONE: SIGTERM,
    Event.BYE: "0",
    Event.STOP: SIGTERM,
    Event.HAND_OFF: SIGTERM,
    Event.UPGRADE: "new",
}

# How each state comes about.
STATES = {
    Mount.MOUNTING: mounting,
    Mount.ALONE: lambda: after(mounting(), Event.READY),
    Mount.STARTING: resuming,
    Mount.SERVING: serving,
    Mount.ASKED: asked,
    Mount.ENDING: lambda: after(serving(), Event.CLOSED),
    Mount.PAUSED: lambda: after(serving(), Event.EXITED),
    Mount.LEAVING: lambda: after(serving(), Event.BYE),
    Mount.HANDING_OFF: lambda: after(serving(), Event.HAND_OFF),
    Upgrade.IDLE: serving,
    Upgrade.CHECKING: checking,
    Upgrade.ABLE: lambda: stood_by(Event.ABLE),
    Upgrade.DISMISSED: lambda: stood_by(Event.UNABLE),
    Upgrade.TAKING_OVER: lambda: after(stood_by(Event.ABLE), Event.EXITED),
}


def transitions(state: Enum) -> str:
    """What follows upon a state, and by which events, as the documentation has it."""
    found: dict[str, list[str]] = {}
    for role in (STANDBY, DAEMON) if isinstance(state, Upgrade) else (DAEMON,):
        for event in EVENTS_OF[MACHINES[role]]:
            kept = STATES[state]()
            assert state in kept.states()
            kept.tell_supervisor(event, ARGUMENTS.get(event, ""), role)
            if state in kept.states() and kept.supervisor.exit_code is None:
                continue
            (after,) = {one for one in kept.states() if isinstance(one, type(state))}
            name = after.name if kept.supervisor.exit_code is None else "the end"
            whose = "the mount's " if role is not MACHINE_OF[type(state)] else ""
            found.setdefault(name, []).append(whose + event.value)
    return ", ".join(f"{name} ({', '.join(events)})" for name, events in found.items())


@pytest.mark.parametrize("state", STATES)
def test_the_documentation_tells_of_each_state_what_follows_upon_it(state: Enum) -> None:
    (row,) = re.findall(rf"^\| {state.name} \| .+ \| (.*) \|$", SURVIVING.read_text(), re.M)
    assert row == transitions(state)
    assert re.search(rf"^    {state.name} +\w", supervisor.__doc__ or "", re.MULTILINE)


def check_invariants(kept: Kept) -> None:
    """What holds between any two events."""
    mount, upgrade = kept.states()
    if kept.supervisor.exit_code is not None:
        return
    assert bool(kept.supervisor.pid) == (DAEMON in kept.processes)
    assert bool(kept.supervisor.upgrade.pid) == (STANDBY in kept.processes)
    stands_by = upgrade in (Upgrade.CHECKING, Upgrade.ABLE, Upgrade.DISMISSED)
    assert stands_by == (STANDBY in kept.processes)
    if mount is Mount.PAUSED:
        assert DAEMON not in kept.processes
    elif mount is not Mount.HANDING_OFF:
        assert DAEMON in kept.processes
    if mount in (Mount.PAUSED, Mount.STARTING, Mount.ASKED):
        assert kept.supervisor.deadline is not None, "it would stay for ever"
    if mount in (Mount.ENDING, Mount.HANDING_OFF):
        assert kept.supervisor.deadline is not None or DAEMON not in kept.lively
    if upgrade is Upgrade.ABLE:
        assert mount in (Mount.ENDING, Mount.LEAVING, Mount.HANDING_OFF)
    if upgrade is Upgrade.TAKING_OVER:
        assert mount not in (Mount.SERVING, Mount.ASKED, Mount.PAUSED)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_in_whichever_order_nothing_is_forgotten(seed: int) -> None:
    chance = random.Random(seed)
    kept = mounting() if seed % 2 else resuming()
    for _ in range(200):
        if kept.supervisor.exit_code is not None:
            break
        role = chance.choice(list(kept.processes) or [DAEMON])
        if chance.random() < 0.3:
            kept.pass_time(chance.choice([0.1, 1, 10]))
        elif chance.random() < 0.2:
            kept.standby(Event.UPGRADE, "new")
        else:
            event = chance.choice([one for one in EVENTS_OF[MACHINES[role]] if may_come(kept, one)])
            kept.tell_supervisor(event, ARGUMENTS.get(event, ""), role)
        check_invariants(kept)
    # Whoever ends then is replaced by one that serves, or the keeper is at its end.
    for _ in range(20):
        if kept.supervisor.exit_code is not None or kept.states() == (Mount.SERVING, Upgrade.IDLE):
            return
        for role in list(kept.processes):
            kept.tell_supervisor(Event.EXITED, "killed by signal 9", role)
        kept.pass_time(LONGEST_PAUSE)
        kept.tell_supervisor(Event.READY, "{}")
    raise AssertionError(kept.states())


def may_come(kept: Kept, event: Event) -> bool:
    """Time passes by itself, and what is a daemon's to say or do needs one."""
    if event in (Event.STEP, Event.DEADLINE, Event.UPGRADE):
        return False
    return bool(kept.processes) or event in (Event.STOP, Event.HAND_OFF)


# ---------------------------------------------------------------- from the start to serving


def test_a_mount_begins_with_a_daemon_that_has_any_time_to_make_it() -> None:
    kept = mounting()
    assert kept.actions == [("start", DAEMON, "old"), ("give", DAEMON, "go")]
    assert kept.supervisor.due() is None
    kept.tell_supervisor(Event.MOUNTED)
    assert kept.states() == (Mount.STARTING, Upgrade.IDLE)
    assert kept.supervisor.due() is not None


def test_who_waits_for_the_mount_is_told_when_it_answers() -> None:
    kept = mounting()
    kept.tell_supervisor(Event.MOUNTED)
    assert kept.tell_supervisor(Event.READY, '{"ready": true}') == [
        ("leave_group",),
        ("answer", '{"ready": true}'),
        ("notify", f"READY=1\nSTATUS=Mounted, served by process {kept.pid}"),
    ]


def test_who_waits_for_the_mount_is_told_why_it_never_will_answer() -> None:
    kept = mounting()
    kept.tell_supervisor(Event.MOUNTED)
    assert kept.tell_supervisor(Event.FAILED, "why") == [("answer", "why")]
    kept.tell_supervisor(Event.BYE, "32")
    kept.tell_supervisor(Event.EXITED, "exit code 32")
    assert kept.supervisor.exit_code == 32


def test_a_first_daemon_that_dies_before_there_is_a_mount_ends_the_keeper() -> None:
    kept = mounting()
    forgotten, (what, problem) = kept.tell_supervisor(Event.EXITED, "exit code 3")
    assert forgotten == ("forget", DAEMON)
    assert what == "fail"
    assert str(problem).startswith("the daemon died before the mount was ready (exit code 3): ")
    assert kept.supervisor.exit_code == InternalError.exit_code


@pytest.mark.parametrize("ready", [False, True])
def test_a_daemon_that_has_nobody_to_go_on_is_not_replaced_when_it_closes_its_end(
    ready: bool,
) -> None:
    kept = mounting()
    if ready:
        kept.tell_supervisor(Event.READY, "{}")
    kept.tell_supervisor(Event.CLOSED)
    assert kept.pass_time(ENDING) == [KILL]
    kept.tell_supervisor(Event.EXITED, "killed by signal 9")
    assert kept.supervisor.exit_code == (MountFailure if ready else InternalError).exit_code


def test_a_daemon_that_takes_nothing_is_ended() -> None:
    kept = Kept()
    kept.takes = False
    kept.supervisor.resume(kept.now)
    assert kept.pass_time(0) == [("start", DAEMON, "old"), ("give", DAEMON, "go"), KILL]


def test_a_daemon_that_does_not_begin_to_serve_is_ended_and_replaced() -> None:
    kept = resuming()
    assert KILL not in kept.pass_time(STARTING - 1)
    assert kept.pass_time(1)[-1] == KILL
    assert kept.logged == [f"the daemon {kept.pid} does not begin to serve, and is ended"]
    kept.tell_supervisor(Event.EXITED, "killed by signal 9")
    assert ("start", DAEMON, "old") in kept.pass_time(0)


# ---------------------------------------------------------------- whether it answers


def test_a_daemon_that_answers_is_asked_again_and_again() -> None:
    kept = serving(watchdog=8)
    for _ in range(10):
        assert PING in kept.pass_time(2)
        kept.now += 1
        assert kept.tell_supervisor(Event.PONG) == []
    assert kept.logged == []


def test_a_watchdog_may_come_after_the_word_that_it_serves() -> None:
    kept = serving()
    kept.tell_supervisor(Event.WATCH, "8")
    assert kept.pass_time(2) == [PING]


def test_one_without_a_watchdog_is_asked_nothing() -> None:
    assert serving().pass_time(3 * LOOK) == [LOOKED] * 3


def test_a_daemon_that_is_stuck_tells_where_and_is_killed() -> None:
    kept = serving(watchdog=8)
    assert kept.pass_time(2) == [PING]
    assert [one for one in kept.pass_time(7) if one != LOOKED] == [PING] * 3
    assert [one for one in kept.pass_time(1) if one != LOOKED] == [
        ("log_threads", DAEMON),
        ("signal", DAEMON, signal.SIGUSR2),
        ("signal", DAEMON, signal.SIGCONT),
    ]
    assert KILL not in kept.pass_time(STACKS / 2)
    kept.tell_supervisor(Event.PONG)  # too late
    assert KILL in kept.pass_time(STACKS / 2)
    assert kept.logged == [
        f"the daemon {kept.pid} has answered nothing for 8 s and is replaced; it was here:"
    ]


def test_a_daemon_that_is_killed_is_looked_at_only_after_some_time() -> None:
    # One of its threads may be on the way out yet, and look like one that stays in the kernel.
    kept = resuming()
    kept.pass_time(STARTING)
    assert kept.pass_time(ENDING / 2) == []
    assert kept.pass_time(ENDING / 2) == [LOOKED]


# ---------------------------------------------------------------- the end of a daemon


def test_daemons_that_served_are_replaced_after_pauses_that_stay_short() -> None:
    kept = serving()
    for number in range(1, 1100):  # what doubles ends at 2**1024
        kept.now += QUICK / 2
        kept.tell_supervisor(Event.EXITED, "killed by signal 9")
        assert kept.supervisor.exit_code is None
        due = kept.supervisor.due()
        assert due is not None
        assert due == kept.now if number <= AT_ONCE else kept.now < due <= kept.now + LONGEST_PAUSE
        kept.pass_time(LONGEST_PAUSE)
        assert kept.supervisor.state is Mount.STARTING
        kept.tell_supervisor(Event.READY, "{}")


def test_one_that_served_for_long_is_replaced_at_once() -> None:
    kept = serving()
    for _ in range(2 * HOPELESS):
        kept.now += QUICK
        kept.tell_supervisor(Event.EXITED, "killed by signal 9")
        assert kept.logged[-1] == (
            f"the daemon {kept.pid} ended (killed by signal 9) after 1.0 s: starting the next one"
        )
        assert kept.pass_time(0) == [("start", DAEMON, "old"), ("give", DAEMON, "go")]
        kept.tell_supervisor(Event.READY, "{}")


def test_a_mount_that_no_daemon_can_serve_is_given_up() -> None:
    kept = resuming()
    for _ in range(HOPELESS - 1):
        kept.tell_supervisor(Event.EXITED, "exit code 3")
        kept.pass_time(LONGEST_PAUSE)
    assert kept.supervisor.exit_code is None
    kept.tell_supervisor(Event.EXITED, "exit code 3")
    assert kept.supervisor.exit_code == InternalError.exit_code
    assert kept.logged[-1].endswith(", and none can serve: giving the mount up")


def test_what_cannot_be_started_is_tried_again() -> None:
    kept = Kept()
    kept.missing = ["old"]
    kept.supervisor.resume(kept.now)
    kept.pass_time(0)
    assert len(kept.logged) == AT_ONCE + 1
    assert set(kept.logged[:-1]) == {
        "cannot start old: No such file or directory: starting the next one"
    }
    kept.missing = []
    assert kept.pass_time(LONGEST_PAUSE)[-2:] == [
        ("start", DAEMON, "old"),
        ("give", DAEMON, "go"),
    ]


def test_a_daemon_that_closes_its_end_is_given_a_moment_to_end_by_itself() -> None:
    kept = serving()
    kept.tell_supervisor(Event.CLOSED)
    assert kept.pass_time(ENDING / 2) == []
    assert KILL in kept.pass_time(ENDING / 2)
    kept.tell_supervisor(Event.EXITED, "killed by signal 9")
    assert kept.supervisor.state is Mount.PAUSED


def test_a_daemon_that_is_done_ends_the_keeper_with_the_code_it_wants() -> None:
    kept = serving(watchdog=8)
    kept.tell_supervisor(Event.BYE, "7")
    assert kept.supervisor.exit_code is None
    kept.tell_supervisor(Event.CLOSED)
    kept.tell_supervisor(Event.EXITED, "exit code 7")
    assert kept.supervisor.exit_code == 7


def test_a_daemon_that_is_done_and_does_not_end_is_ended() -> None:
    kept = serving(watchdog=8)
    kept.tell_supervisor(Event.BYE, "7")
    assert KILL in kept.pass_time(8)
    kept.tell_supervisor(Event.EXITED, "killed by signal 9")
    assert kept.supervisor.exit_code == 7


# ---------------------------------------------------------------- what is asked of us


def test_a_request_to_stop_reaches_a_daemon_that_serves() -> None:
    assert TERM in serving().tell_supervisor(Event.STOP, SIGTERM)
    assert TERM in mounting().tell_supervisor(Event.STOP, SIGTERM)


def test_a_request_to_stop_waits_for_a_daemon_that_serves() -> None:
    kept = resuming()
    assert TERM not in kept.tell_supervisor(Event.STOP, SIGTERM)
    kept.tell_supervisor(Event.EXITED, "exit code 3")
    assert TERM not in kept.tell_supervisor(Event.STOP, SIGTERM)
    kept.pass_time(0)
    said = kept.tell_supervisor(Event.READY, "{}")
    assert said.count(TERM) == 2


def test_a_request_to_stop_goes_on_to_the_next_daemon_until_it_is_done() -> None:
    kept = serving()
    for _ in range(2):
        kept.tell_supervisor(Event.STOP, SIGTERM)
        kept.tell_supervisor(Event.EXITED, "killed by signal 9")
        kept.pass_time(0)
        assert TERM in kept.tell_supervisor(Event.READY, "{}")
        kept.tell_supervisor(Event.DONE, SIGTERM)
    kept.tell_supervisor(Event.EXITED, "killed by signal 9")
    kept.pass_time(LONGEST_PAUSE)
    assert TERM not in kept.tell_supervisor(Event.READY, "{}")


def test_a_request_to_stop_of_which_nothing_was_said_is_not_kept_for_ever() -> None:
    # By a daemon of a version that does not say what it has done.
    kept = serving()
    kept.tell_supervisor(Event.STOP, SIGTERM)
    kept.now += 3600
    kept.tell_supervisor(Event.EXITED, "killed by signal 9")
    kept.pass_time(0)
    assert TERM not in kept.tell_supervisor(Event.READY, "{}")


def test_the_mount_is_left_to_the_next_keeper_when_all_daemons_have_ended() -> None:
    kept = checking()
    said = kept.tell_supervisor(Event.HAND_OFF, SIGTERM)
    assert said == [KILL, KILL_STANDBY, ("reply", "ended")]
    kept.standby(Event.EXITED, "killed by signal 9")
    assert kept.supervisor.exit_code is None
    kept.tell_supervisor(Event.EXITED, "killed by signal 9")
    assert (kept.supervisor.exit_code, kept.supervisor.hands_off) == (0, True)


def test_a_mount_between_two_daemons_is_left_to_the_next_keeper_at_once() -> None:
    kept = serving()
    kept.tell_supervisor(Event.EXITED, "killed by signal 9")
    kept.tell_supervisor(Event.HAND_OFF, SIGTERM)
    assert (kept.supervisor.exit_code, kept.supervisor.hands_off) == (0, True)


def test_what_cannot_be_left_to_the_next_keeper_is_unmounted() -> None:
    kept = mounting()
    assert TERM in kept.tell_supervisor(Event.HAND_OFF, SIGTERM)
    kept.tell_supervisor(Event.READY, "{}")
    assert TERM in kept.tell_supervisor(Event.HAND_OFF, SIGTERM)


# ---------------------------------------------------------------- upgrades


def test_another_version_takes_over_when_it_can_and_the_old_one_has_ended() -> None:
    kept = serving()
    old = kept.pid
    assert kept.standby(Event.UPGRADE, "new\0-v") == [
        ("start", STANDBY, "new", "-v"),
        ("give", STANDBY, "check"),
    ]
    assert kept.standby(Event.ABLE) == [KILL]
    assert kept.tell_supervisor(Event.EXITED, "killed by signal 9") == [
        ("forget", DAEMON),
        ("promote",),
        ("give", DAEMON, "go"),
    ]
    assert kept.pid != old
    assert ("reply", f"ok {kept.pid}") in kept.tell_supervisor(Event.READY, "{}")
    assert kept.states() == (Mount.SERVING, Upgrade.IDLE)
    kept.now += QUICK
    kept.tell_supervisor(Event.EXITED, "killed by signal 9")
    assert ("start", DAEMON, "new", "-v") in kept.pass_time(0)


def test_another_version_takes_over_at_once_between_two_daemons() -> None:
    kept = checking()
    kept.tell_supervisor(Event.EXITED, "killed by signal 9")
    assert kept.standby(Event.ABLE) == [("promote",), ("give", DAEMON, "go")]


def test_a_version_that_does_not_serve_is_gone_back_from() -> None:
    kept = checking()
    kept.standby(Event.ABLE)
    kept.tell_supervisor(Event.EXITED, "killed by signal 9")
    said = kept.tell_supervisor(Event.EXITED, "exit code 3")
    refusal = "refused it does not serve: the last version does again, see the log"
    assert ("reply", refusal) in said
    assert kept.pass_time(0) == [("start", DAEMON, "old"), ("give", DAEMON, "go")]
    assert kept.states() == (Mount.STARTING, Upgrade.IDLE)


def test_a_version_that_cannot_take_over_leaves_the_old_one_alone() -> None:
    kept = checking()
    assert kept.standby(Event.UNABLE, "why") == [("reply", "refused why"), KILL_STANDBY]
    kept.standby(Event.EXITED, "killed by signal 9")
    assert kept.states() == (Mount.SERVING, Upgrade.IDLE)


@pytest.mark.parametrize("able", [True, False])
def test_a_version_that_dies_is_refused_and_the_old_one_comes_again(able: bool) -> None:
    kept = checking()
    if able:
        kept.standby(Event.ABLE)
    refusal = "refused the new version does not start (exit code 3): see the log"
    assert kept.standby(Event.EXITED, "exit code 3") == [("forget", STANDBY), ("reply", refusal)]
    kept.tell_supervisor(Event.EXITED, "killed by signal 9")
    assert ("start", DAEMON, "old") in kept.pass_time(0)


def test_a_version_that_says_nothing_is_ended_and_refused() -> None:
    kept = checking()
    pid = kept.pid
    assert KILL_STANDBY not in kept.pass_time(STARTING - 1)
    assert KILL_STANDBY in kept.pass_time(1)
    assert kept.logged == [f"the daemon {pid} does not begin to serve, and is ended"]
    kept.standby(Event.EXITED, "killed by signal 9")
    assert kept.states() == (Mount.SERVING, Upgrade.IDLE)


def test_a_version_that_closes_its_end_is_not_taken_over_by() -> None:
    kept = checking()
    kept.standby(Event.ABLE)
    kept.standby(Event.CLOSED)
    kept.tell_supervisor(Event.EXITED, "killed by signal 9")
    assert ("start", DAEMON, "old") in kept.pass_time(0)
    assert KILL_STANDBY in kept.pass_time(ENDING)


def test_a_version_that_cannot_be_started_is_refused() -> None:
    kept = serving()
    kept.missing = ["new"]
    assert kept.standby(Event.UPGRADE, "new") == [
        ("reply", "refused cannot start new: No such file or directory")
    ]
    assert kept.states() == (Mount.SERVING, Upgrade.IDLE)


def test_no_version_is_asked_while_a_daemon_is_replaced() -> None:
    refused = [("reply", "refused the daemon is just being replaced: try again")]
    assert resuming().standby(Event.UPGRADE, "new") == refused
    kept = serving()
    kept.tell_supervisor(Event.EXITED, "killed by signal 9")
    assert kept.standby(Event.UPGRADE, "new") == refused
    assert checking().standby(Event.UPGRADE, "other") == refused


def test_what_makes_no_sense_is_logged_and_changes_nothing() -> None:
    kept = serving()
    before = kept.states()
    assert kept.tell_supervisor(Event.READY, "{}") == []
    assert kept.logged == ["'ready' was not expected in SERVING, and is ignored"]
    assert kept.states() == before
