"""The Debian package on a clean machine: installed, tried, replaced under a mount, removed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.command import run
from integration.machine import Machine

# The first test makes the tree of the machine, and the package.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def machine(package: Path, tmp_path: Path) -> Iterator[Machine]:
    """A machine with the package and a source, booted."""
    machine = Machine(tmp_path / tmp_path.name, package)
    try:
        machine.boot()
        machine.sh("mkdir -p /data/model /srv/copy; echo original >/data/model/file")
        yield machine
    finally:
        machine.close()


def daemon(machine: Machine) -> str:
    """The command line of what serves the only copy."""
    [copy] = json.loads(machine.sh("cowfs list --json"))
    return machine.sh(f"tr '\\0' ' ' </proc/{copy['daemon_pid']}/cmdline")


def test_everybody_may_use_what_is_in_the_package(package: Path) -> None:
    modes = {}
    for line in run("dpkg-deb", "--contents", package).stdout.splitlines():
        mode, owner, *_, path = line.split(maxsplit=5)
        assert owner == "root/root", line
        modes[path] = mode
    plain = {path: mode for path, mode in modes.items() if not mode.startswith("l")}
    assert set(plain.values()) == {"drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x"}
    assert plain["./usr/lib/cowfs/dist/bin/cowfs"] == "-rwxr-xr-x"


def test_an_installed_package_works(machine: Machine) -> None:
    smoke = machine.sh("/usr/share/doc/cowfs/examples/smoke-test /data/smoke")
    assert smoke.splitlines()[-1] == "cowfs works"
    assert machine.sh("dpkg --verify cowfs") == ""  # nothing has changed its files


def test_a_package_is_not_removed_under_a_mount(machine: Machine) -> None:
    machine.sh("mount -t cowfs -o copy=kept /data/model /srv/copy")
    refused = machine.run("dpkg", "--remove", "cowfs", check=False)
    assert refused.returncode != 0
    assert "cowfs: copies are mounted; unmount them first:" in refused.stderr
    assert "/srv/copy" in refused.stdout + refused.stderr
    machine.sh("echo changed >/srv/copy/file; umount /srv/copy")

    machine.sh("dpkg -L cowfs | grep cowfs >/run/files; dpkg --remove cowfs")
    left = machine.sh('while read -r file; do [ ! -e "$file" ] || echo "$file"; done </run/files')
    assert left == ""
    machine.sh("test ! -e /usr/lib/cowfs; test ! -e /run/cowfs")
    assert machine.sh("cat /data/.cowfs/copies/kept/upper/file") == "changed"


def test_a_newer_package_takes_mounts_over(machine: Machine, newer_package: Path) -> None:
    machine.sh("mount -t cowfs /data/model /srv/copy")
    before = daemon(machine)
    shutil.copy(newer_package, f"/proc/{machine.pid}/root/newer.deb")
    machine.sh("exec 3</srv/copy/file; dpkg --install /newer.deb; cat <&3 >/run/seen")
    assert machine.sh("cat /run/seen") == "original"
    after = daemon(machine)
    assert before.startswith("/usr/lib/cowfs/0.")
    assert after.startswith("/usr/lib/cowfs/99.0-")
    machine.sh("umount /srv/copy")
