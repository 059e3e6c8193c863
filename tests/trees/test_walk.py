"""Walking a tree that changes meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cowfs.trees.walk import walk


def remove(directory: Path) -> None:
    directory.rmdir()


def replace_by_a_file(directory: Path) -> None:
    directory.rmdir()
    directory.touch()


def replace_by_a_link(directory: Path) -> None:
    directory.rename(directory.with_name("moved"))
    directory.symlink_to("moved")


@pytest.mark.parametrize("change", [remove, replace_by_a_file, replace_by_a_link])
def test_what_goes_away_meanwhile_is_left_out(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    (tmp_path / "directory").mkdir()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        steps = walk(fd)
        assert next(steps).name == b"directory"
        change(tmp_path / "directory")
        assert [step.directory for step in steps if step.directory] == []
    finally:
        os.close(fd)
