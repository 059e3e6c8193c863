"""Completion of the command line in real shells: bash, zsh, fish."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cowfs.commands import cli, completion
from cowfs.commands.table import table
from integration import shells

COWFS = table(cli.PROGRAM, cli.cowfs)

#: Stand for the programs that completion asks, so that the answers are known.
COPIES = r"""#!/bin/sh
[ "$1 $2" = "list --json" ] || exit 9
cat <<'END'
[
  {
    "name": "mnt-job\\x2d42",
    "source": "/data/a"
  },
  {
    "name": "spare \"one\"",
    "source": "/data/b"
  }
]
END
"""
MOUNTS = r"""#!/bin/sh
printf '%s\n' '/srv/my\x20copy' /mnt/plain
"""

Candidates = Callable[[str], "list[str] | shells.Completed"]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH on which `cowfs list` and findmnt answer what is above."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name, text in (("cowfs", COPIES), ("findmnt", MOUNTS)):
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


@pytest.fixture(params=["bash", "zsh"])
def tab(request: pytest.FixtureRequest, tmp_path: Path, path: str) -> Callable[[str], object]:
    """`tab(line)` types the line and Tab."""
    shell = request.param
    script = tmp_path / "_cowfs"
    script.write_text(getattr(completion, shell)(COWFS))
    return lambda line: shells.complete(shell, script, line, path)


@pytest.fixture
def fish(tmp_path: Path, path: str) -> Callable[[str], list[str]]:
    """`fish(line)` is what fish offers for the last word of the line."""
    script = tmp_path / "cowfs.fish"
    script.write_text(completion.fish(COWFS))

    def candidates(line: str) -> list[str]:
        done = subprocess.run(
            ["fish", "--no-config", "-c", f"source {script}; complete -C $argv[1]", "--", line],
            env={**os.environ, "PATH": path, "HOME": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return [line.partition("\t")[0] for line in done.stdout.splitlines()]

    return candidates


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("cowfs mou", "cowfs mount "),
        ("cowfs --vers", "cowfs --version "),
        ("cowfs import --resu", "cowfs import --resume "),
        ("cowfs clone --reflink au", "cowfs clone --reflink auto "),
        ("cowfs mount -o eph", "cowfs mount -o ephemeral"),
        ("cowfs mount -o ro,clone=o", "cowfs mount -o ro,clone=open"),
        ("cowfs mount -o ro,noex", "cowfs mount -o ro,noexec"),
        ("cowfs umount /mnt/p", "cowfs umount /mnt/plain "),
        ("cowfs umount /srv/", r"cowfs umount /srv/my\ copy "),
        ("cowfs rm mnt", r"cowfs rm mnt-job\\x2d42 "),
        ("cowfs check sp", r"cowfs check spare\ \"one\" "),
        ("cowfs doctor /usr/shar", "cowfs doctor /usr/share/"),
        ("cowfs rm --store /usr/shar", "cowfs rm --store /usr/share/"),
        ("cowfs logs /mnt/p", "cowfs logs /mnt/plain "),
        ("cowfs store r", "cowfs store rm "),
        ("cowfs store rm --y", "cowfs store rm --yes "),
        ("cowfs store rm /usr/shar", "cowfs store rm /usr/share/"),
        ("cowfs mount -o store=/usr/shar", "cowfs mount -o store=/usr/share"),
    ],
)
def test_tab_completes_the_word(
    tab: Callable[[str], shells.Completed], typed: str, completed: str
) -> None:
    line = tab(typed).line
    # what follows, a space, a slash or the comma of a list, is the shell's own affair
    assert line.rstrip(" /,") == completed.rstrip(" /")


def test_tab_lists_every_command_and_option(tab: Callable[[str], shells.Completed]) -> None:
    shown = tab("cowfs ").shown.split()
    for command in COWFS.commands:
        assert command.name in shown
    shown = tab("cowfs import -").shown.split()
    for flag in ("--resume", "--verify", "--region", "--jobs", "--depth", "--json", "--help"):
        assert flag in shown


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("cowfs mou", ["mount"]),
        ("cowfs --vers", ["--version"]),
        ("cowfs import --resu", ["--resume"]),
        ("cowfs clone --reflink ", ["always", "auto"]),
        ("cowfs mount -o eph", ["ephemeral"]),
        ("cowfs mount -o ro,clone=", ["ro,clone=auto", "ro,clone=open", "ro,clone=write"]),
        ("cowfs mount -o ro,noex", ["ro,noexec"]),
        ("cowfs umount /", ["/mnt/plain", "/srv/my copy"]),
        ("cowfs rm m", [r"mnt-job\x2d42"]),
        ("cowfs check s", ['spare "one"']),
        ("cowfs doctor /usr/shar", ["/usr/share/"]),
        ("cowfs rm --store /usr/shar", ["/usr/share/"]),
        ("cowfs list ", []),
        ("cowfs store rm --y", ["--yes"]),
        ("cowfs store rm /usr/shar", ["/usr/share/"]),
    ],
)
def test_fish_offers_the_word(
    fish: Callable[[str], list[str]], typed: str, offered: list[str]
) -> None:
    assert fish(typed) == offered


def test_fish_offers_every_command_and_option(fish: Callable[[str], list[str]]) -> None:
    assert set(fish("cowfs ")) == {command.name for command in COWFS.commands}
    for command in COWFS.commands:
        flags = {flag for option in command.options for flag in option.flags}
        assert {flag for flag in flags if flag.startswith("--")} <= set(
            fish(f"cowfs {command.name} --")
        )
