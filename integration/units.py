"""Copies as units of a machine that has booted systemd."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from integration.machine import Machine

SOURCE = "/data/models/llama"

#: Reads by an old descriptor and by new ones, and lists, until its input ends.
READER = """
    import os, select, sys
    path = sys.argv[1]
    old, wanted = os.open(path, os.O_RDONLY), os.path.getsize(path)
    first = os.pread(old, wanted, 0)
    print("reading", flush=True)
    while not select.select([0], [], [], 0)[0]:
        assert os.pread(old, wanted, 0) == first
        with open(path, "rb") as new:
            assert new.read() == first
        assert os.path.basename(path) in os.listdir(os.path.dirname(path))
"""


@contextmanager
def booted(directory: Path, package: Path) -> Iterator[Machine]:
    """A machine with the package, a model, and a reader."""
    machine = Machine(directory, package)
    machine.write("root/reader.py", READER)
    machine.write("var/log/journal/README", "Here the journal outlives a boot.\n")
    try:
        machine.boot()
        machine.sh(f"mkdir -p {SOURCE}; head -c 8M /dev/urandom >{SOURCE}/weights")
        machine.put(f"{SOURCE}/config.json", "{}")
        yield machine
    finally:
        machine.close()


class Services:
    """Copies as services, each with a mountpoint of its name."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._names: list[str] = []

    def add(self, name: str, options: str = "", source: str = SOURCE, mountpoint: str = "") -> str:
        """Configure one; its unit."""
        mountpoint = mountpoint or f"/srv/{name}"
        lines = f"SOURCE={source}\nMOUNTPOINT={mountpoint}\nOPTIONS={options}\n"
        self._machine.put(f"/etc/cowfs/{name}.conf", lines)
        self._machine.sh(f"mkdir -p {mountpoint}")
        self._names.append(name)
        return f"cowfs@{name}.service"

    def add_directives(self, name: str, section: str, *directives: str) -> None:
        """What an administrator has edited in its unit."""
        text = "\n".join([f"[{section}]", *directives, ""])
        self._machine.put(f"/run/systemd/system/cowfs@{name}.service.d/test.conf", text)
        self._machine.sh("systemctl daemon-reload")

    def remove(self) -> None:
        """Stop and forget all of them."""
        for name in self._names:
            self._machine.sh(f"systemctl stop cowfs@{name}; systemctl reset-failed 'cowfs@*' ||:")
            self._machine.sh(f"rm -rf /etc/cowfs/{name}.conf /run/systemd/system/cowfs@{name}.*.d")
        self._machine.sh("systemctl daemon-reload")


@contextmanager
def reading(machine: Machine, path: str) -> Iterator[subprocess.Popen[str]]:
    """Somebody reads this file all the time, and sees no error until the end."""
    with machine.background("python3", "/root/reader.py", path) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        yield process
        process.stdin.close()
        assert process.wait(30) == 0


def is_mounted(machine: Machine, path: str) -> bool:
    """Whether a copy is mounted there."""
    done = machine.run("findmnt", "-t", "fuse.cowfs", "--mountpoint", path, check=False)
    return done.returncode == 0


def daemon_of(machine: Machine, path: str) -> int:
    """The process that serves a mount."""
    copies = json.loads(machine.sh("cowfs list --json"))
    [pid] = [copy["daemon_pid"] for copy in copies if copy["mountpoint"] == path]
    return int(pid)
