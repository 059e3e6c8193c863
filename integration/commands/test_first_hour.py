"""The first hour: what README.md and docs/operations.md tell a reader to type, on a clean Debian.

Blocks of `sh` are run as they stand, in their order, by one reader, as root, in a clone of this
tree. The reader has what the pages speak of: an XFS volume at /data, and a model in
/nfs/models/llama.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cowfs import __version__
from integration.command import cowfs
from integration.machine import Machine

# The first test makes the tree of the machine.
pytestmark = pytest.mark.timeout(900)

TOP = Path(__file__).parent.parent.parent
PAGES = ("README.md", "docs/operations.md")
#: Where the clone is.
CLONE = "/root/cowfs"
LEFT_OUT = "<!-- not in the first hour: "

#: What a line that can be typed begins with.
COMMANDS = (
    *("cowfs", "mount", "umount", "systemctl", "journalctl", "apt", "mkdir", "cp", "echo"),
    *("packaging/build-deb", "./quickstart.sh", "./test.sh"),
)

#: How this machine reaches archives and an index of Python packages, which the reader's does, too.
WAY_OUT = ("http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL", "PIP_DEFAULT_TIMEOUT")
TRUSTED = Path("/etc/ssl/certs/ca-certificates.crt")


class Block(NamedTuple):
    """Some lines of a page. language: empty for what is only indented."""

    where: str
    language: str
    text: str
    is_left_out: bool


def blocks(page: str) -> Iterator[Block]:
    """Every block of a page, in its order."""
    text = (TOP / page).read_text()
    fenced = r"^```(?P<language>\S*)\n(?P<fenced>.*?)^```$"
    indented = r"(?<=\n\n)(?P<indented>(?:    [^\n]*\n|\n(?=    ))+)"
    for found in re.finditer(f"{fenced}|{indented}", text, re.MULTILINE | re.DOTALL):
        above = text[: found.start()].rstrip("\n").rpartition("\n")[2]
        yield Block(
            f"{page}:{text.count(chr(10), 0, found.start()) + 1}",
            found["language"] or "",
            found["fenced"] or found["indented"] or "",
            above.startswith(LEFT_OUT),
        )


def typed() -> list[Block]:
    """What a reader types."""
    found = [block for page in PAGES for block in blocks(page)]
    return [block for block in found if block.language == "sh" and not block.is_left_out]


@pytest.mark.parametrize("page", PAGES)
def test_what_could_be_typed_is_marked_as_such(page: str) -> None:
    """Only a form, which has words in capitals or brackets to be filled in, may be indented."""
    for block in blocks(page):
        lines = [line.strip() for line in block.text.splitlines()]
        is_form = re.search(r"\b[A-Z]{2,}\b|\[", block.text)
        begins = [line for line in lines if line.startswith(tuple(f"{c} " for c in COMMANDS))]
        assert block.language == "sh" or is_form or not begins, (
            f"{block.where}: commands that can be typed stand in a block of sh: {begins}"
        )
    assert any(block.language == "sh" for block in blocks(page))


@pytest.mark.parametrize("page", PAGES)
def test_a_form_names_options_that_there_are(page: str) -> None:
    for block in blocks(page):
        for command, rest in re.findall(
            r"^ +cowfs (store rm|[\w-]+)(.*)", block.text, re.MULTILINE
        ):
            told = set(re.findall(r"--[a-z-]+", cowfs(*command.split(), "--help").stdout))
            assert set(re.findall(r"--[a-z-]+", rest)) <= told, block.where


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A clean Debian with a clone of the tree and a model, booted."""
    machine = Machine(tmp_path / tmp_path.name)
    try:
        skip = shutil.ignore_patterns(".git", ".venv", ".*cache", "__pycache__", "*.so", "dist")
        shutil.copytree(TOP, machine.directory / f"upper{CLONE}", ignore=skip)
        if TRUSTED.exists():
            machine.write("root/trusted.crt", TRUSTED.read_text())
        machine.boot()
        machine.sh("mkdir -p /nfs/models/llama /data/models")
        machine.sh("head -c 8M /dev/urandom >/nfs/models/llama/weights")
        machine.put("/nfs/models/llama/config.json", "{}")
        yield machine
    finally:
        machine.close()


def type_in(machine: Machine, script: str, timeout: float = 60) -> str:
    """What a reader sees who types this in the clone."""
    way_out = [f"{name}={os.environ[name]}" for name in WAY_OUT if name in os.environ]
    if TRUSTED.exists():
        way_out.append("PIP_CERT=/root/trusted.crt")
    done = machine.run(
        *("env", "HOME=/root", "DEBIAN_FRONTEND=noninteractive", *way_out),
        *("bash", "-ec", f"cd {CLONE}\n{script}"),
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_first_hour(machine: Machine) -> None:
    reader = typed()
    [install] = [block for block in reader if "packaging/build-deb" in block.text]
    lacking = machine.run("sh", "-c", f"cd {CLONE}; packaging/build-deb", check=False)
    [named] = re.findall(r"apt install -y (gcc .*)", install.text)
    assert lacking.returncode == 1
    assert lacking.stderr == (
        f"build-deb: packages are missing, install them first: apt install {named}\n"
    )
    for block in reader:
        type_in(machine, block.text, timeout=600 if block is install else 60)
        if block is install:
            installed = machine.sh(
                "command -v cowfs; cowfs --version; ls /usr/share/man/man1/cowfs*"
            )
            assert installed.splitlines() == [
                "/usr/bin/cowfs",
                f"cowfs {__version__}",
                "/usr/share/man/man1/cowfs.1.gz",
            ]
            assert machine.sh("dpkg-query -W -f '${Version}' cowfs") == __version__
    # What the reader has at the end: a line of fstab, a service, and what was cloned.
    for place in ("/srv/llama", "/srv/models/llama", "/data/models/tuned"):
        machine.sh(f"cmp /nfs/models/llama/weights {place}/weights")
    assert machine.sh("systemctl is-system-running") == "running"


def test_the_documents_are_in_the_package(package: Path, tmp_path: Path) -> None:
    machine = Machine(tmp_path / tmp_path.name, package)
    try:
        shared = machine.directory / "upper/usr/share/doc/cowfs"
        for page in PAGES:
            assert (shared / page).read_text() == (TOP / page).read_text()
        for target in re.findall(r"\]\((docs/[^)#]+)", (shared / "README.md").read_text()):
            assert (shared / target).exists(), target
        example = TOP / "systemd/examples/llama.conf"
        assert (shared / "examples/llama.conf").read_text() == example.read_text()
    finally:
        machine.close()
