"""The Debian package is removed: what keeps it, and what it takes with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.machine import Machine
from integration.units import Services, booted

# The first test makes the tree of the machine, and the package.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def machine(package: Path, tmp_path: Path) -> Iterator[Machine]:
    """A machine with the package and a model, booted."""
    with booted(tmp_path / tmp_path.name, package) as machine:
        yield machine


def test_only_what_is_mounted_keeps_it_and_its_links_go_with_it(machine: Machine) -> None:
    services = Services(machine)
    served = services.add("served", mountpoint="/srv/served")
    other = services.add("other")
    machine.sh("mkdir -p '/srv/my copy' /srv/kept")
    machine.sh(f"systemctl enable {other}; systemctl enable --now {served} cowfs-gc.timer")
    machine.sh("systemctl add-wants basic.target cowfs@third.service")
    machine.sh("cowfs mount /data/models/llama /srv/kept; cowfs umount /srv/kept")
    machine.sh("cowfs mount -o engine=overlay /data/models/llama '/srv/my copy'")
    refused = machine.run("dpkg", "--remove", "cowfs", check=False)
    assert refused.returncode != 0
    lines = refused.stderr.splitlines()
    begin = lines.index("cowfs: copies are mounted; unmount them first:")
    ours = [line for line in lines[begin + 1 :] if line.startswith("  ")]
    assert sorted(ours) == ["  cowfs umount '/srv/my copy'", f"  systemctl stop {served}"]
    assert machine.show(served, "UnitFileState") == "enabled"

    machine.sh("\n".join([*ours, "dpkg --remove cowfs"]))
    links = machine.sh("find /etc/systemd/system -name 'cowfs*'")
    assert links == ""
    assert "cowfs" not in machine.sh("systemctl list-units --all --no-legend --plain 'cowfs*'")
    assert sorted(machine.sh("ls /etc/cowfs").split()) == ["other.conf", "served.conf"]
    assert "kept" in machine.sh("ls /data/.cowfs/copies")


def test_a_service_that_does_not_start_keeps_nothing(machine: Machine) -> None:
    unit = Services(machine).add("absent", source="/data/absent")
    machine.run("systemctl", "enable", "--now", unit, check=False)
    machine.wait_until(f"systemctl is-failed {unit}")
    machine.sh("dpkg --remove cowfs")
    assert machine.sh("find /etc/systemd/system -name 'cowfs*'") == ""
    assert machine.sh("systemctl --failed --no-legend --plain") == ""
