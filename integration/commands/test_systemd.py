"""Copies under a real systemd: units, fstab, and what becomes of a copy when something ends."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowfs import __version__
from integration import kernel
from integration.machine import Machine
from integration.units import SOURCE, Services, booted, daemon_of, is_mounted, reading

# The first test makes the tree of the machine, and the package.
pytestmark = pytest.mark.timeout(600)

UNITS = "/usr/lib/systemd/system"
EXAMPLES = "/usr/share/doc/cowfs/examples"
LLAMA = "srv-models-llama.mount"
OPERATIONS = Path(__file__).parent.parent.parent / "docs/operations.md"


@pytest.fixture(scope="module")
def machine(package: Path) -> Iterator[Machine]:
    """A machine for most of these tests; each takes away what it has put there."""
    # A name of its own, which its control groups have, too: others may boot one at the same time.
    with booted(kernel.session_dir() / f"machine-{os.getpid()}", package) as machine:
        yield machine


@pytest.fixture
def own_machine(package: Path, tmp_path: Path) -> Iterator[Machine]:
    """One for a test that boots it again."""
    with booted(tmp_path / tmp_path.name, package) as machine:
        yield machine


@pytest.fixture
def services(machine: Machine) -> Iterator[Services]:
    """`services.add(NAME)` configures a copy as a service."""
    services = Services(machine)
    yield services
    services.remove()


@pytest.fixture
def unit(machine: Machine) -> Iterator[Callable[[str, str], str]]:
    """`unit(NAME, TEXT)` adds a unit for the time of the test."""
    names: list[str] = []

    def add(name: str, text: str) -> str:
        machine.put(f"/run/systemd/system/{name}", text)
        machine.sh("systemctl daemon-reload")
        names.append(name)
        return name

    yield add
    for name in reversed(names):
        machine.sh(f"systemctl stop {name}; rm /run/systemd/system/{name}")
    machine.sh("systemctl daemon-reload; systemctl reset-failed")


@pytest.fixture
def llama(machine: Machine) -> Iterator[str]:
    """The example of a .mount and its .automount, as an administrator would copy it."""
    machine.sh(f"mkdir -p /srv/models/llama; cp {EXAMPLES}/* /run/systemd/system")
    machine.sh("systemctl daemon-reload")
    yield "/srv/models/llama"
    machine.sh("systemctl stop srv-models-llama.automount srv-models-llama.mount")
    machine.sh("rm -r /run/systemd/system/srv-models-llama.*; systemctl daemon-reload")
    machine.sh("cowfs rm llama 2>/dev/null || :")


# --- a copy as a service --------------------------------------------------------------------------


def test_started_means_that_the_copy_answers(machine: Machine, services: Services) -> None:
    unit = services.add("job")
    machine.sh(f"systemctl start {unit}")
    assert machine.sh("cat /srv/job/config.json") == "{}"
    assert machine.show(unit, "StatusText") == (
        f"Mounted, served by process {daemon_of(machine, '/srv/job')}"
    )
    assert f"/srv/job shows the copy srv-job of {SOURCE}" in machine.journal(unit).splitlines()


def test_what_needs_a_copy_starts_when_it_is_there(
    machine: Machine, services: Services, unit: Callable[[str, str], str]
) -> None:
    copy = services.add("needed")
    user = unit(
        "user.service",
        f"""
        [Unit]
        Requires={copy}
        After={copy}
        [Service]
        Type=oneshot
        ExecStart=cp /srv/needed/config.json /run/seen
        """,
    )
    machine.sh(f"systemctl start {user}")
    assert machine.sh("cat /run/seen; rm /run/seen") == "{}"


def test_stopping_unmounts_and_keeps_what_was_written(machine: Machine, services: Services) -> None:
    unit = services.add("kept")
    machine.sh(
        f"systemctl start {unit}; echo changed >/srv/kept/config.json; systemctl stop {unit}"
    )
    assert not is_mounted(machine, "/srv/kept")
    assert machine.show(unit, "ActiveState") == "inactive"
    journal = machine.journal(unit).splitlines()
    assert "/srv/kept is unmounted, and the copy srv-kept is kept" in journal
    machine.sh(f"systemctl start {unit}")
    assert machine.sh("cat /srv/kept/config.json") == "changed"
    assert machine.sh(f"cat {SOURCE}/config.json") == "{}"


def test_an_ephemeral_copy_is_gone_when_stopping_is_done(
    machine: Machine, services: Services
) -> None:
    unit = services.add("brief", "ephemeral,copy=brief")
    machine.sh(f"systemctl start {unit}; echo changed >/srv/brief/config.json")
    machine.sh(f"test -d /data/.cowfs/copies/brief; systemctl stop {unit}")
    machine.sh("test ! -e /data/.cowfs/copies/brief")
    journal = machine.journal(unit).splitlines()
    assert "/srv/brief is unmounted, and the copy brief is discarded" in journal


def test_a_copy_that_somebody_else_unmounts_is_mounted_again(
    machine: Machine, services: Services
) -> None:
    unit = services.add("again")
    machine.sh(f"systemctl start {unit}; cowfs umount /srv/again")
    machine.wait_until("findmnt --mountpoint /srv/again")
    assert machine.sh("cat /srv/again/config.json") == "{}"


def test_restarting_the_service_goes_unnoticed_by_a_reader(
    machine: Machine, services: Services
) -> None:
    unit = services.add("restarted")
    machine.sh(f"systemctl start {unit}")
    pids = {machine.show(unit, "MainPID"), str(daemon_of(machine, "/srv/restarted"))}
    with reading(machine, "/srv/restarted/weights"):
        machine.sh(f"systemctl restart {unit}")
        assert machine.show(unit, "MainPID") not in pids
        assert str(daemon_of(machine, "/srv/restarted")) not in pids
        machine.sh("echo changed >/srv/restarted/config.json")
    journal = machine.journal(unit).splitlines()
    assert "restarted: the mount stays, and its calls wait for the next daemon" in journal
    assert f"/srv/restarted is served by cowfs {__version__} from now on" in journal
    machine.sh(f"systemctl stop {unit}")
    assert not is_mounted(machine, "/srv/restarted")


def test_a_keeper_that_is_killed_goes_unnoticed_by_a_reader(
    machine: Machine, services: Services
) -> None:
    unit = services.add("orphan")
    machine.sh(f"systemctl start {unit}")
    with reading(machine, "/srv/orphan/weights"):
        machine.sh(f"kill -KILL {machine.show(unit, 'MainPID')}")
        machine.wait_until(f"test $(systemctl show --value -p NRestarts {unit}) = 1")
        machine.wait_until(f"systemctl is-active {unit}")
        machine.sh("echo changed >/srv/orphan/config.json")
    assert (
        f"/srv/orphan is served by cowfs {__version__} from now on"
        in machine.journal(unit).splitlines()
    )


def test_a_daemon_that_is_killed_goes_unnoticed_by_a_reader(
    machine: Machine, services: Services
) -> None:
    unit = services.add("killed")
    machine.sh(f"systemctl start {unit}")
    keeper = machine.show(unit, "MainPID")
    killed = daemon_of(machine, "/srv/killed")
    with reading(machine, "/srv/killed/weights"):
        machine.sh(f"kill -KILL {killed}")
        machine.wait_until(
            f"systemctl show -p StatusText {unit} | grep served.by | grep -vw {killed}"
        )
        machine.sh("echo changed >/srv/killed/config.json")
    assert machine.show(unit, "MainPID") == keeper
    assert re.search(
        rf"^the daemon {killed} ended \(killed by signal 9\) after [0-9.]+ s: "
        r"starting the next one$",
        machine.journal(unit),
        re.MULTILINE,
    )


def test_without_resend_a_dead_daemon_ends_the_service_and_leaves_an_error(
    machine: Machine, services: Services
) -> None:
    # As on a kernel before 6.9. Nobody writes to the directory below, and no restart hides the end.
    unit = services.add("dead")
    services.add_directives("dead", "Service", "Environment=COWFS_RESEND=off")
    machine.sh(f"systemctl start {unit}")
    machine.sh(f"kill -KILL {daemon_of(machine, '/srv/dead')}")
    machine.wait_until(f"systemctl is-failed {unit}")
    assert machine.show(unit, "NRestarts") == "0"
    assert machine.run("touch", "/srv/dead/checkpoint", check=False).returncode == 1
    machine.sh("cowfs umount /srv/dead; test ! -e /srv/dead/checkpoint")
    machine.sh(f"systemctl start {unit}; cat /srv/dead/config.json")


def test_without_resend_a_restart_leaves_what_is_in_use(
    machine: Machine, services: Services
) -> None:
    unit = services.add("stays")
    services.add_directives("stays", "Service", "Environment=COWFS_RESEND=off")
    machine.sh(f"systemctl start {unit}")
    daemon = daemon_of(machine, "/srv/stays")
    with reading(machine, "/srv/stays/weights"):
        machine.run("systemctl", "restart", unit, check=False)
        assert daemon_of(machine, "/srv/stays") == daemon
        machine.sh("echo changed >/srv/stays/config.json")
    machine.sh("cowfs umount /srv/stays")
    machine.wait_until(f"systemctl is-active {unit}")  # it was asked to start, after all
    assert machine.sh("cat /srv/stays/config.json") == "changed"


def test_without_resend_a_mount_outlives_its_keeper(machine: Machine, services: Services) -> None:
    unit = services.add("alone")
    services.add_directives("alone", "Service", "Environment=COWFS_RESEND=off")
    machine.sh(f"systemctl start {unit}")
    with reading(machine, "/srv/alone/weights"):
        machine.sh(f"kill -KILL {machine.show(unit, 'MainPID')}")
        machine.wait_until(f"! systemctl is-active {unit}")
        machine.sh("echo changed >/srv/alone/config.json")
    machine.sh("cowfs umount /srv/alone")
    machine.wait_until(f"systemctl is-active {unit}")
    assert machine.sh("cat /srv/alone/config.json") == "changed"


def test_the_sandbox_keeps_nobody_from_using_the_copy(machine: Machine, services: Services) -> None:
    unit = services.add("free", "passthrough=off")
    machine.sh(f"systemctl start {unit}")
    machine.sh(
        """
        cd /srv/free
        rm config.json; cp weights more; truncate -s 1M more; fallocate -l 1M even-more
        cmp weights /data/models/llama/weights
        mkdir directory; mv directory moved; ln more hard; ln -s more soft
        mknod device c 1 3; mkfifo fifo
        chown 1000:1000 more; chmod 6755 more; touch -d 2001-01-01 more
        python3 -c 'import os
for name in "user.a", "trusted.a": os.setxattr("more", name, b"b")
with open("weights", "rb") as a, open("copied", "wb") as b:
    assert os.copy_file_range(a.fileno(), b.fileno(), 4096) == 4096'
        """
    )
    assert machine.sh("stat -c '%a %u %g %h' /srv/free/more") == "6755 1000 1000 2"
    # what has no name any more is found again by the daemon after the next
    unnamed = "exec 3<>/srv/free/unnamed; echo old >&3; rm /srv/free/unnamed"
    restart = f"systemctl restart {unit}"
    assert machine.sh(f"{unnamed}; {restart}; {restart}; cat /proc/self/fd/3") == "old"
    assert "Operation not permitted" not in machine.journal(unit)


def test_stopping_waits_for_the_last_user(machine: Machine, services: Services) -> None:
    unit = services.add("waits")
    machine.sh(f"systemctl start {unit}")
    with reading(machine, "/srv/waits/weights"):
        machine.sh(f"systemctl stop --no-block {unit}")
        machine.wait_until(f"systemctl show -p ActiveState {unit} | grep deactivating")
    machine.wait_until(f"systemctl show -p ActiveState {unit} | grep inactive")
    assert not is_mounted(machine, "/srv/waits")
    assert machine.show(unit, "Result") == "success"


def test_stopping_leaves_what_stays_in_use(machine: Machine, services: Services) -> None:
    unit = services.add("busy")
    machine.sh(f"systemctl start {unit}")
    with reading(machine, "/srv/busy/weights"):
        machine.sh(f"systemctl stop {unit}")
        assert machine.show(unit, "Result") == "timeout"
        machine.sh("echo changed >/srv/busy/config.json")
        # the copy has one daemon still, and gets no second one
        daemon = daemon_of(machine, "/srv/busy")
        assert machine.run("systemctl", "start", unit, check=False).returncode != 0
        assert daemon_of(machine, "/srv/busy") == daemon
    assert (
        "/srv/busy is in use and stays mounted; end what uses it (fuser -vm /srv/busy) "
        "and ask again"
    ) in machine.journal(unit).splitlines()
    machine.sh(f"cowfs umount /srv/busy; systemctl reset-failed {unit}; systemctl start {unit}")
    assert machine.sh("cat /srv/busy/config.json") == "changed"


# --- a copy as a mount ----------------------------------------------------------------------------


def test_the_example_of_a_mount_mounts(machine: Machine, llama: str) -> None:
    machine.sh(f"systemctl start {LLAMA}")
    assert machine.sh(f"findmnt -no SOURCE,FSTYPE --mountpoint {llama}").split() == [
        SOURCE,
        "fuse.cowfs",
    ]
    machine.sh(f"systemctl stop {LLAMA}")
    assert not is_mounted(machine, llama)


def test_a_mount_is_not_killed_with_its_unit(machine: Machine, llama: str) -> None:
    machine.sh(f"systemctl start {LLAMA}")
    with reading(machine, f"{llama}/weights"):
        machine.run("systemctl", "kill", "--signal=KILL", LLAMA, check=False)
        stopped = machine.run("systemctl", "stop", LLAMA, check=False)
        assert stopped.returncode != 0
        assert is_mounted(machine, llama)
    assert re.search(
        rf"^umount.cowfs: {llama} is busy, held by python3 \(pid [0-9]+\): end what uses it, "
        rf"or detach it with: cowfs umount --lazy {llama}$",
        machine.journal(LLAMA),
        re.MULTILINE,
    )


def test_keeper_and_daemon_have_a_scope_that_ends_with_the_mount(
    machine: Machine, llama: str
) -> None:
    machine.sh(f"systemctl start {LLAMA}")
    daemon = daemon_of(machine, llama)
    group = machine.sh(f"grep -h -m 1 -o 'system.slice/.*' /proc/{daemon}/cgroup")
    scope = Path(group).name
    assert re.fullmatch(r"cowfs-[0-9]+\.scope", scope)
    assert machine.show(scope, "Description") == f"Copy of {SOURCE} on {llama}"
    machine.sh(f"systemctl stop {LLAMA}")
    machine.wait_until(f"! systemctl is-active {scope}")
    assert machine.show(scope, "LoadState") == "not-found"


def test_a_mount_outlives_the_service_that_made_it(
    machine: Machine, llama: str, unit: Callable[[str, str], str]
) -> None:
    maker = unit(
        "maker.service",
        f"""
        [Service]
        Type=oneshot
        ExecStart=mount -t cowfs {SOURCE} {llama}
        """,
    )
    machine.sh(f"systemctl start {maker}")
    assert machine.sh(f"cat {llama}/config.json") == "{}"
    assert machine.journal(maker).count("mount.cowfs:") == 0


def test_the_first_access_mounts(machine: Machine, llama: str) -> None:
    machine.sh("systemctl start srv-models-llama.automount")
    assert not is_mounted(machine, llama)
    assert machine.sh(f"cat {llama}/config.json") == "{}"
    assert is_mounted(machine, llama)
    machine.sh("systemctl stop srv-models-llama.automount")
    assert not is_mounted(machine, llama)


def test_a_mount_that_nobody_uses_goes_and_comes_back(machine: Machine, llama: str) -> None:
    machine.put(
        "/run/systemd/system/srv-models-llama.automount.d/idle.conf",
        "[Automount]\nTimeoutIdleSec=1\n",
    )
    machine.sh("systemctl daemon-reload; systemctl start srv-models-llama.automount")
    machine.sh(f"echo changed >{llama}/config.json")
    machine.wait_until(f"! findmnt -t fuse.cowfs --mountpoint {llama}")
    assert machine.sh(f"cat {llama}/config.json") == "changed"


def test_fstab_mounts_once(machine: Machine) -> None:
    machine.sh("mkdir -p '/srv/my copy'")
    machine.put("/etc/fstab", f"{SOURCE} /srv/my\\040copy cowfs copy=mine,nofail 0 0\n")
    machine.sh("systemctl daemon-reload; mount -a")
    daemon = daemon_of(machine, "/srv/my copy")
    machine.sh("mount -a")
    assert daemon_of(machine, "/srv/my copy") == daemon
    unit = "srv-my\\x20copy.mount"
    machine.wait_until(f"systemctl is-active '{unit}'")
    assert SOURCE in machine.show(unit, "RequiresMountsFor")
    machine.sh("umount '/srv/my copy'; rm /etc/fstab; systemctl daemon-reload")
    assert not is_mounted(machine, "/srv/my copy")


def test_a_volume_that_comes_late_is_waited_for(
    machine: Machine, unit: Callable[[str, str], str]
) -> None:
    machine.sh(f"mkdir -p /data/hidden /late; cp -r {SOURCE} /data/hidden/model")
    unit(
        "slow.service",
        """
        [Service]
        Type=oneshot
        RemainAfterExit=yes
        ExecStart=sleep 1
        """,
    )
    unit(
        "late.mount",
        """
        [Unit]
        Requires=slow.service
        After=slow.service
        [Mount]
        What=/data/hidden
        Where=/late
        Options=bind
        """,
    )
    copy = unit(
        "srv-late.mount",
        """
        [Mount]
        What=/late/model
        Where=/srv/late
        Type=cowfs
        Options=store=/late/store
        """,
    )
    machine.sh(f"systemctl start {copy}")
    assert machine.sh("cat /srv/late/config.json") == "{}"
    machine.sh("systemctl stop late.mount")  # the copy is stopped before its volume
    assert not is_mounted(machine, "/srv/late")
    machine.sh("test ! -e /late/store; test -e /data/hidden/store")


# --- a boot ---------------------------------------------------------------------------------------


def test_a_reboot_brings_copies_back_with_their_changes(own_machine: Machine) -> None:
    machine = own_machine
    service = Services(machine).add("boots")
    machine.sh("mkdir -p /srv/tab")
    machine.put("/etc/fstab", f"{SOURCE} /srv/tab cowfs copy=tab 0 0\n")
    machine.put(
        "/etc/systemd/system/user.service",
        f"""
        [Unit]
        Requires={service}
        After={service}
        [Service]
        ExecStart=sh -c 'echo $(cat /srv/boots/config.json /srv/tab/config.json); \\
            exec sleep infinity </srv/boots/weights'
        [Install]
        WantedBy=multi-user.target
        """,
    )
    machine.sh(f"systemctl daemon-reload; systemctl enable {service} user; mount -a")
    machine.sh("systemctl start user")
    machine.sh("echo first >/srv/boots/config.json; echo second >/srv/tab/config.json")
    machine.go_down("reboot")
    machine.boot()
    machine.wait_until("journalctl -b -o cat -u user | grep -x 'first second'")
    for copy in (service, "srv-tab.mount"):
        assert machine.show(copy, "ActiveState") == "active"
    before = machine.sh(f"journalctl -b -1 -o cat -u {service} -u srv-tab.mount").splitlines()
    assert "/srv/boots is unmounted, and the copy srv-boots is kept" in before
    assert "Unmounted srv-tab.mount - /srv/tab." in before
    assert f"{service}: Deactivated successfully." in before


def test_a_machine_goes_down_though_copies_stay_in_use(own_machine: Machine) -> None:
    machine = own_machine
    service = Services(machine).add("used")
    machine.sh(f"mkdir -p /srv/models/llama; cp {EXAMPLES}/* /etc/systemd/system")
    machine.sh(f"systemctl daemon-reload; systemctl start {service} {LLAMA}")
    for path in ("/srv/used", "/srv/models/llama"):
        # of no unit: systemd ends it after everything else
        machine.sh(f"exec sleep infinity <{path}/weights >/dev/null 2>&1 &")
    machine.go_down("poweroff")
    machine.boot()
    machine.sh("cowfs check --all --store /data/.cowfs")


# --- housekeeping ---------------------------------------------------------------------------------


def test_garbage_is_collected_in_the_sandbox(machine: Machine, llama: str) -> None:
    def templates() -> set[str]:
        return set(machine.sh("ls /data/.cowfs/templates").split())

    machine.sh(f"mount -t cowfs -o copy=needed {SOURCE} {llama}; umount {llama}")
    before = templates()
    machine.sh("cp -r /data/models/llama /data/models/old")
    machine.sh(f"mount -t cowfs -o ephemeral,copy=old /data/models/old {llama}; umount {llama}")
    machine.sh("rm -r /data/models/old")
    unneeded = templates() - before
    assert len(unneeded) == 1
    machine.sh("systemctl start cowfs-gc.service")
    assert machine.show("cowfs-gc.service", "Result") == "success"
    assert not templates() & unneeded
    assert machine.sh(f"mount -t cowfs -o copy=needed {SOURCE} {llama}; ls {llama}") == (
        "config.json\nweights"
    )


def test_units_are_sound(machine: Machine) -> None:
    units = [
        *machine.sh(f"ls -d {UNITS}/cowfs*").split(),
        *machine.sh(f"ls {EXAMPLES}/*mount").split(),
    ]
    assert len(units) == 5
    done = machine.run("systemd-analyze", "verify", "--man=no", *units)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("unit", ["cowfs@.service", "cowfs-gc.service"])
def test_exposure_is_what_the_documentation_says(machine: Machine, unit: str) -> None:
    shown = machine.run("systemd-analyze", "security", "--offline=yes", f"{UNITS}/{unit}").stdout
    print(shown)
    [score] = re.findall(r"Overall exposure level for .*: ([0-9.]+) ", shown)
    assert re.search(rf"`{re.escape(unit)}`.* {re.escape(score)} ", OPERATIONS.read_text())


# --- what cannot be -------------------------------------------------------------------------------


def journal_of_a_refusal(machine: Machine, unit: str, code: int) -> str:
    """Starting it fails with this code, and not again; what cowfs says of that, one line."""
    assert machine.run("systemctl", "start", unit, check=False).returncode != 0
    journal = machine.journal(unit)
    process = "Mount process" if unit.endswith(".mount") else "Main process"
    assert journal.count(f"{unit}: {process} exited, code=exited, status={code}/") == 1, journal
    machine.wait_until(f"systemctl is-failed {unit}")
    [line] = re.findall("^(?:mount\\.)?cowfs: (.*)$", journal, re.MULTILINE)
    return str(line)


def test_a_service_with_a_wrong_option_is_refused(machine: Machine, services: Services) -> None:
    unit = services.add("wrong", "bogus")
    line = journal_of_a_refusal(machine, unit, 1)
    assert line.startswith("unknown option 'bogus': see cowfs(5)")


def test_a_service_without_its_source_is_refused(machine: Machine, services: Services) -> None:
    unit = services.add("absent", source="/data/absent")
    assert journal_of_a_refusal(machine, unit, 32) == (
        "source /data/absent does not exist: name an existing directory"
    )


def test_a_service_that_names_nothing_is_refused(machine: Machine, services: Services) -> None:
    unit = services.add("empty", source="")
    line = journal_of_a_refusal(machine, unit, 1)
    assert line == "the source has no name: say SOURCE=DIRECTORY in /etc/cowfs/empty.conf"


def test_a_service_without_a_configuration_is_refused(machine: Machine) -> None:
    unit = "cowfs@none.service"
    assert journal_of_a_refusal(machine, unit, 1) == (
        "the source has no name: say SOURCE=DIRECTORY in /etc/cowfs/none.conf, which is not there"
    )
    assert machine.sh(f"systemctl show -P NRestarts {unit}") == "0"
    machine.sh("systemctl reset-failed")


def test_the_example_of_a_configuration_can_be_copied(machine: Machine, services: Services) -> None:
    unit = services.add("example")
    example = machine.sh(f"cat {EXAMPLES}/llama.conf")
    machine.put("/etc/cowfs/example.conf", example.replace("/srv/models/llama", "/srv/example"))
    machine.sh(f"systemctl start {unit}")
    assert machine.sh("cat /srv/example/config.json") == "{}"
    assert "ro," in machine.sh("findmnt -no OPTIONS /srv/example")


def test_a_service_without_the_right_to_mount_is_refused(
    machine: Machine, services: Services
) -> None:
    unit = services.add("powerless")
    services.add_directives("powerless", "Service", "CapabilityBoundingSet=~CAP_SYS_ADMIN")
    line = journal_of_a_refusal(machine, unit, 1)
    assert line.startswith("no permission to mount: what needs CAP_SYS_ADMIN is refused; ")


def test_two_services_do_not_share_a_copy(machine: Machine, services: Services) -> None:
    first, second = services.add("first", "copy=one"), services.add("second", "copy=one")
    machine.sh(f"systemctl start {first}")
    daemon = daemon_of(machine, "/srv/first")
    assert journal_of_a_refusal(machine, second, 32) == (
        f"the copy one is in use: it is mounted at /srv/first (daemon {daemon}); choose "
        "another name with -o copy=NAME, or unmount it with: cowfs umount /srv/first"
    )
    assert machine.sh("cat /srv/first/config.json") == "{}"


MOUNTS = {
    "option": (SOURCE, "bogus", 1, "unknown option 'bogus': see cowfs(5)"),
    "source": ("/data/absent", "ro", 32, "source /data/absent does not exist: name an existing"),
    "place": ("/srv", "ro", 32, "mountpoint /srv/place is inside the source /srv: "),
}


@pytest.mark.parametrize("case", MOUNTS)
def test_a_mount_is_refused_for_its(
    machine: Machine, unit: Callable[[str, str], str], case: str
) -> None:
    source, options, code, says = MOUNTS[case]
    mount = unit(
        f"srv-{case}.mount",
        f"""
        [Mount]
        What={source}
        Where=/srv/{case}
        Type=cowfs
        Options={options}
        """,
    )
    assert journal_of_a_refusal(machine, mount, code).startswith(says)
    assert not is_mounted(machine, f"/srv/{case}")


def test_logs_of_a_service_are_those_of_the_journal(machine: Machine, services: Services) -> None:
    unit = services.add("told")
    machine.sh(f"systemctl start {unit}")
    daemon = daemon_of(machine, "/srv/told")
    machine.sh(f"kill -9 {daemon}")
    machine.wait_until(f"cowfs logs /srv/told | grep -q 'the daemon {daemon} ended'")
    assert len(machine.sh("cowfs logs -n 1 /srv/told").splitlines()) == 1
