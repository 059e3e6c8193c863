"""A service whose configuration was changed or is wrong: restarted, reloaded, not started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowfs.mount import options
from integration import kernel
from integration.machine import Machine
from integration.units import SOURCE, Services, booted, daemon_of, is_mounted, reading

# The first test makes the tree of the machine, and the package.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def machine(package: Path) -> Iterator[Machine]:
    """A machine for all of these tests; each takes away what it has put there."""
    with booted(kernel.session_dir() / f"configured-{os.getpid()}", package) as machine:
        yield machine


@pytest.fixture
def services(machine: Machine) -> Iterator[Services]:
    """`services.add(NAME, OPTIONS)` configures a copy as a service, or does so anew."""
    services = Services(machine)
    yield services
    services.remove()


def said(machine: Machine, unit: str) -> list[str]:
    """What cowfs itself has said in the journal since this was called last, errors first."""
    journal = machine.sh(
        f"journalctl --no-pager -o cat -u {unit} --cursor-file=/run/cursor-of-{unit} ||:"
    ).splitlines()
    return [line for line in journal if " from now on" in line or line.startswith("cowfs: ")]


def shown(machine: Machine, path: str) -> set[str]:
    """The options that the mount table shows."""
    return set(machine.sh(f"findmnt -no OPTIONS --mountpoint {path}").split(","))


# --- what can be changed --------------------------------------------------------------------------


def test_a_restart_applies_what_a_remount_applies(machine: Machine, services: Services) -> None:
    unit = services.add("flags", "noatime")
    machine.sh(f"systemctl start {unit}")
    assert {"rw", "noatime"} <= shown(machine, "/srv/flags")
    assert said(machine, unit) == []
    with reading(machine, "/srv/flags/weights"):
        services.add("flags", "ro,noexec")
        machine.sh(f"systemctl restart {unit}")
        assert shown(machine, "/srv/flags") >= {"ro", "noexec", "nosuid", "nodev", "relatime"}
        assert machine.run("touch", "/srv/flags/new", check=False).returncode == 1
    line = "/srv/flags is ro, nosuid, nodev, noexec, relatime from now on"
    assert line in said(machine, unit)
    services.add("flags", "suid")
    machine.sh(f"systemctl restart {unit}; echo changed >/srv/flags/config.json")
    assert not {"noexec", "nosuid"} & shown(machine, "/srv/flags")
    machine.sh(f"systemctl restart {unit}")
    lines = [line for line in said(machine, unit) if "served by" not in line]
    assert lines == ["/srv/flags is rw, nodev, relatime from now on"]  # once


def test_a_reload_applies_it_without_another_keeper(machine: Machine, services: Services) -> None:
    unit = services.add("loaded")
    machine.sh(f"systemctl start {unit}")
    before = machine.show(unit, "MainPID"), daemon_of(machine, "/srv/loaded")
    services.add("loaded", "ro")
    machine.sh(f"systemctl reload {unit}")
    assert "ro" in shown(machine, "/srv/loaded")
    assert (machine.show(unit, "MainPID"), daemon_of(machine, "/srv/loaded")) == before
    assert said(machine, unit) == ["/srv/loaded is ro, nosuid, nodev, relatime from now on"]


def test_what_is_open_for_writing_does_not_become_read_only(
    machine: Machine, services: Services
) -> None:
    unit = services.add("written")
    machine.sh(f"systemctl start {unit}")
    services.add("written", "ro")
    machine.sh(f"exec 3>>/srv/written/config.json; systemctl restart {unit}; echo more >&3")
    assert "rw" in shown(machine, "/srv/written")
    assert said(machine, unit)[1:] == [
        "cowfs: cannot make /srv/written read-only: files in it are open for writing (fuser -vm "
        "/srv/written tells by whom)"
    ]
    machine.sh(f"systemctl reload {unit}")
    assert "ro" in shown(machine, "/srv/written")


def test_a_copy_of_overlayfs_is_changed_in_the_same_way(
    machine: Machine, services: Services
) -> None:
    unit = services.add("layered", "engine=overlay")
    machine.sh(f"systemctl start {unit}")
    with reading(machine, "/srv/layered/weights"):
        services.add("layered", "ro,clone=open")
        machine.sh(f"systemctl restart {unit}")
        assert "ro" in shown(machine, "/srv/layered")
    assert said(machine, unit) == [
        "cowfs: /srv/layered goes on without clone: clone=open needs a stop and a start: systemctl "
        "stop cowfs@layered; systemctl start cowfs@layered",
        "/srv/layered is ro, nosuid, nodev, relatime from now on",
    ]


# --- what takes a stop and a start ----------------------------------------------------------------


EVERYTHING = (
    "ro,ephemeral,copy=all,store=/data/all,engine=fuse,clone=write,inplace=*.h5,passthrough=off,"
    "links=keep,share_min=2M,watchdog=30,sync"
)


def test_each_thing_that_takes_a_new_mount_is_said_in_a_line(
    machine: Machine, services: Services
) -> None:
    """All that there is, so that no option is forgotten."""
    named = {item.partition("=")[0] for item in EVERYTHING.split(",")}
    unit = services.add("many", EVERYTHING)
    machine.sh(f"systemctl start {unit}")
    assert said(machine, unit) == []
    machine.sh(f"systemctl reload {unit}")
    assert said(machine, unit) == []
    services.add("many", source="/data/models/other", mountpoint="/srv/elsewhere")
    machine.sh(f"systemctl restart {unit}")
    lines = said(machine, unit)[1:]
    assert lines[:3] == [
        "cowfs: /srv/many goes on with the source /data/models/llama: SOURCE=/data/models/other "
        "needs a stop and a start: systemctl stop cowfs@many; systemctl start cowfs@many",
        "cowfs: /srv/many goes on where it is: MOUNTPOINT=/srv/elsewhere "
        "needs a stop and a start: systemctl stop cowfs@many; systemctl start cowfs@many",
        "cowfs: /srv/many goes on with sync: to be without sync "
        "needs a stop and a start: systemctl stop cowfs@many; systemctl start cowfs@many",
    ]
    assert {line.split(" ", 4)[4].partition(":")[0] for line in lines[3:]} == {
        *(f"with {item}" for item in EVERYTHING.split(",") if not item.startswith(("sync", "ro"))),
        "read-only, as it was started",
    } - {"with engine=fuse"}  # which auto may be as well
    assert named - {"ro", "sync"} == set(options.FIXED)
    assert is_mounted(machine, "/srv/many")
    services.add("many", "clone=open,copy=other")
    machine.sh(f"systemctl stop {unit}; systemctl start {unit}")
    assert machine.sh("cowfs list --json | grep -c clone=open,copy=other") == "1"
    services.add("many", "clone=open,copy=other,watchdog=5")
    assert machine.run("systemctl", "reload", unit, check=False).returncode != 0
    assert machine.show(unit, "ActiveState") == "active"
    assert said(machine, unit)[-1] == (
        "cowfs: /srv/many goes on without watchdog: watchdog=5 "
        "needs a stop and a start: systemctl stop cowfs@many; systemctl start cowfs@many"
    )


# --- what is wrong --------------------------------------------------------------------------------

WRONG = {
    "option": ("SOURCE=/data/models/llama\nMOUNTPOINT=/srv/{0}\nOPTIONS=bogus\n", "unknown option"),
    "nothing": ("", "the source has no name: say SOURCE=DIRECTORY in /etc/cowfs/{0}.conf"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_configuration_ends_no_mount_that_is_in_use(
    machine: Machine, services: Services, case: str
) -> None:
    name = f"wrong-{case}"
    unit = services.add(name)
    machine.sh(f"systemctl start {unit}")
    text, says = WRONG[case]
    with reading(machine, f"/srv/{name}/weights"):
        machine.put(f"/etc/cowfs/{name}.conf", text.format(name))
        machine.sh(f"systemctl restart {unit}; echo changed >/srv/{name}/config.json")
        assert machine.show(unit, "ActiveState") == "active"
        assert machine.run("systemctl", "reload", unit, check=False).returncode != 0
    first, *others = said(machine, unit)
    assert "is served by cowfs" in first
    assert len(others) == 2  # of the restart, and of the reload
    for line in others:
        assert line.startswith(f"cowfs: /srv/{name} goes on as before: {says.format(name)}")


HOPELESS = {
    "in-use": ("ExecStart=\nExecStart=sh -c 'exit 32'", "32"),
    "no-directory": ("WorkingDirectory=/gone", "200/CHDIR"),
}


@pytest.mark.parametrize("case", HOPELESS)
def test_what_will_not_get_better_is_tried_once(
    machine: Machine, services: Services, case: str
) -> None:
    name = f"hopeless-{case}"
    directive, status = HOPELESS[case]
    unit = services.add(name)
    services.add_directives(name, "Service", directive)
    assert machine.run("systemctl", "start", unit, check=False).returncode != 0
    machine.wait_until(f"systemctl is-failed {unit}")
    assert machine.show(unit, "NRestarts") == "0"
    assert f"status={status}" in machine.journal(unit)


# --- what a file may look like --------------------------------------------------------------------


def test_a_configuration_is_read_as_systemd_reads_it(machine: Machine, services: Services) -> None:
    unit = services.add("quoted")
    machine.sh("mkdir -p '/data/models/a model' '/srv/a place'; echo 1 >'/data/models/a model/one'")
    machine.put(
        "/etc/cowfs/quoted.conf",
        """
        # a comment
        SOURCE="/data/models/a model"
        ; another one

        MOUNTPOINT='/srv/a place'
        OPTIONS = "ro,copy=a copy"
        """,
    )
    machine.sh(f"systemctl start {unit}")
    assert machine.sh("cat '/srv/a place/one'") == "1"
    assert '"name": "a copy"' in machine.sh("cowfs list --json")
    assert said(machine, unit) == []
    machine.sh(f"systemctl stop {unit}")


@pytest.mark.parametrize("value", ["SOURCE", "MOUNTPOINT", "OPTIONS"])
def test_a_comment_behind_a_value_is_explained(
    machine: Machine, services: Services, value: str
) -> None:
    name = f"comment-{value.lower()}"
    unit = services.add(name)
    lines = f"SOURCE={SOURCE}\nMOUNTPOINT=/srv/{name}\nOPTIONS=ro\n".splitlines()
    text = [f"{line}  # here" if line.startswith(value) else line for line in lines]
    machine.put(f"/etc/cowfs/{name}.conf", "\n".join([*text, ""]))
    assert machine.run("systemctl", "start", unit, check=False).returncode != 0
    [line] = said(machine, unit)
    assert line.endswith(
        f"(in /etc/cowfs/{name}.conf a comment has a line of its own; behind a value it is a part "
        "of it)"
    )
