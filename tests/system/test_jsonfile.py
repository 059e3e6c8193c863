"""JSON files that are whole or not there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowfs.system import jsonfile


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_what_is_written_is_read_back_whatever_bytes_a_path_has(
    directory: int, tmp_path: Path
) -> None:
    value = {"source": os.fsdecode(b"/a\xff\n\xc3\xa4"), "n": 1, "x": None}
    jsonfile.write(directory, "a.json", value)
    assert jsonfile.read(directory, "a.json") == value
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o600


def test_failed_write_leaves_the_old_file_and_nothing_else(directory: int, tmp_path: Path) -> None:
    jsonfile.write(directory, "a.json", {"n": 1})
    with pytest.raises(TypeError):
        jsonfile.write(directory, "a.json", {"n": object()})
    assert jsonfile.read(directory, "a.json") == {"n": 1}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"', "\xff"])
def test_damaged_file_is_a_value_error(directory: int, tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError):  # noqa: PT011 -- which of them is json's business
        jsonfile.read(directory, "a.json")


def test_symlink_is_not_read(directory: int, tmp_path: Path) -> None:
    jsonfile.write(directory, "a.json", {"n": 1})
    (tmp_path / "b.json").symlink_to("a.json")
    with pytest.raises(OSError, match="symbolic"):
        jsonfile.read(directory, "b.json")
