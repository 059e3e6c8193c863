"""Names of copies."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowfs.store.names import NAME_MAX, check_name, default_name
from cowfs.system.errors import UsageError


@pytest.mark.parametrize(
    ("mountpoint", "name"),
    [
        # each as `systemd-escape --path` gives it
        ("/mnt/job-42", r"mnt-job\x2d42"),
        ("/", "-"),
        ("/mnt", "mnt"),
        ("/mnt/", "mnt"),
        ("//mnt//a", "mnt-a"),
        ("/.hidden/.x", r"\x2ehidden-.x"),
        ("/a b", r"a\x20b"),
        ("/a\\b", r"a\x5cb"),
        ("/dev:1/a_b.c", "dev:1-a_b.c"),
        ("/ä", r"\xc3\xa4"),
        ("/\udcff", r"\xff"),
    ],
)
def test_default_name_is_what_systemd_escape_makes_of_a_path(mountpoint: str, name: str) -> None:
    assert default_name(mountpoint) == name


@given(st.lists(st.binary(min_size=1, max_size=255), max_size=20))
def test_every_mountpoint_has_a_name_that_is_allowed(parts: list[bytes]) -> None:
    check_name(default_name(os.fsdecode(b"/" + b"/".join(parts))))


def test_long_mountpoints_that_differ_have_names_that_differ() -> None:
    one, other = default_name("/" + "x" * 300), default_name("/" + "x" * 301)
    assert one != other
    assert len(one) == len(other) == NAME_MAX


@pytest.mark.parametrize("name", ["", "a/b", "/", ".", "..", "a\0b", "x" * 256, "ä" * 128])
def test_impossible_name_is_refused_as_a_wrong_call(name: str) -> None:
    with pytest.raises(UsageError, match="copy"):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "...", "x" * 255, " ", "-", "\udcff", ".json"])
def test_every_other_directory_entry_can_be_a_name(name: str) -> None:
    check_name(name)
