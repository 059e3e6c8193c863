"""The man pages, as the programs that show them take them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from integration.command import cowfs, run

PAGES = ("man1/cowfs.1", "man5/cowfs.5", "man8/mount.cowfs.8", "man8/umount.cowfs.8")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where `cowfs install` has put the pages."""
    cowfs("install", "--root", tmp_path)
    return tmp_path / "usr/share/man"


@pytest.mark.parametrize("page", PAGES)
def test_man_shows_the_page_without_a_warning(directory: Path, page: str) -> None:
    shown = run("man", "--warnings", "--local-file", directory / page, cwd=directory)
    assert shown.stderr == ""
    assert "EXIT STATUS" in shown.stdout or page == "man5/cowfs.5"


@pytest.mark.parametrize("page", PAGES[:3])  # the last one is only another name
def test_mandoc_finds_no_fault(directory: Path, page: str) -> None:
    path = directory / page
    result = run("mandoc", "-T", "lint", "-W", "style", path, cwd=directory, check=False)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("name", ["1 cowfs", "5 cowfs", "8 mount.cowfs", "8 umount.cowfs"])
def test_man_finds_the_page_by_its_name(directory: Path, name: str) -> None:
    shown = run("man", *name.split(), env={"MANPATH": os.fspath(directory)}).stdout
    section, name = name.split()
    assert f"({section})" in shown.splitlines()[0]
    assert name in shown
