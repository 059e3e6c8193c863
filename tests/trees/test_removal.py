"""Removing trees by way of a trash directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowfs.trees import removal


@pytest.fixture
def trash(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "trash").mkdir()
    fd = os.open(tmp_path / "trash", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def put_in(trash: int, path: Path) -> str:
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return removal.trash(fd, path.name, trash)
    finally:
        os.close(fd)


def test_tree_is_gone_and_what_its_links_lead_to_is_not(trash: int, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_text("x")
    (tree / "a" / "b" / "directory").symlink_to(outside)
    (tree / "link").symlink_to(outside / "kept")
    os.mkfifo(tree / "fifo")
    name = put_in(trash, tree)
    assert not tree.exists()
    removal.remove(trash, name)
    assert os.listdir(trash) == []
    assert (outside / "kept").read_text() == "x"


def test_tree_deeper_than_a_path_can_be_long_is_removed(trash: int, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    fd = os.open(tmp_path / "deep", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("level", dir_fd=fd)
        deeper = os.open("level", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(fd)
    removal.remove(trash, put_in(trash, tmp_path / "deep"))
    assert os.listdir(trash) == []


def test_file_symlink_or_nothing_is_removed_too(trash: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    removal.remove(trash, put_in(trash, tmp_path / "link"))
    removal.remove(trash, put_in(trash, tmp_path / "file"))
    removal.remove(trash, "never was")
    assert os.listdir(trash) == []


def test_directory_is_emptied_and_stays(trash: int, tmp_path: Path) -> None:
    (tmp_path / "work" / "a" / "b").mkdir(parents=True)
    fd = os.open(tmp_path / "work", os.O_RDONLY | os.O_DIRECTORY)
    try:
        removal.empty(fd, trash)
    finally:
        os.close(fd)
    assert os.listdir(tmp_path / "work") == []
    assert os.listdir(trash) == []
