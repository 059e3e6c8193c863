"""Names of copies."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowfs.store.names import NAME_MAX, check_name, default_names, former_name
from cowfs.system.errors import UsageError

paths = st.lists(st.binary(min_size=1, max_size=255), max_size=20).map(
    lambda parts: os.fsdecode(b"/" + b"/".join(parts))
)


@pytest.mark.parametrize(
    ("mountpoint", "name"),
    [
        ("/mnt/job-42", "mnt-job-42"),
        ("/mnt", "mnt"),
        ("/srv/models/llama_70b.v2", "srv-models-llama_70b.v2"),
        ("/mnt/my copy", "mnt-my-copy"),
        ("/mnt/it's $HOME", "mnt-it-s-HOME"),
        ("/mnt/-x/--y--", "mnt-x-y"),
        ("/.hidden/.x", "hidden-x"),
        ("/dev:1/a\\b", "dev-1-a-b"),
        ("/mnt/größe", "mnt-größe"),
        ("/mnt/模型", "mnt-模型"),
        ("/mnt/\udcff\x1b[31m", "mnt-31m"),
        ("/", "root"),
        ("/...", "root"),
    ],
)
def test_a_mountpoint_gives_its_copy_a_name_that_can_be_typed(mountpoint: str, name: str) -> None:
    assert default_names(mountpoint)[0] == name


@given(paths)
def test_no_default_name_means_anything_to_a_shell_or_is_taken_for_an_option(path: str) -> None:
    for name in default_names(path):
        check_name(name)
        assert re.fullmatch(r"\w[\w.-]*", name)


@given(paths, paths)
def test_no_two_mountpoints_have_all_their_names_in_common(one: str, other: str) -> None:
    if one != other:
        assert not set(default_names(one)[1:]) & set(default_names(other)[1:])


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
def test_names_of_earlier_versions_are_what_systemd_escape_makes_of_a_path(
    mountpoint: str, name: str
) -> None:
    assert former_name(mountpoint) == name


@given(paths)
def test_every_mountpoint_had_a_name_that_is_allowed(path: str) -> None:
    check_name(former_name(path))


@pytest.mark.parametrize("name_of", [former_name, lambda path: default_names(path)[1]])
def test_long_mountpoints_that_differ_have_names_that_differ(name_of: object) -> None:
    assert callable(name_of)
    one, other = name_of("/" + "x" * 300), name_of("/" + "x" * 301)
    assert one != other
    assert len(one) == len(other) <= NAME_MAX


@pytest.mark.parametrize("name", ["", "a/b", "/", ".", "..", "a\0b", "x" * 256, "ä" * 128])
def test_impossible_name_is_refused_as_a_wrong_call(name: str) -> None:
    with pytest.raises(UsageError, match="copy"):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "...", "x" * 255, " ", "-", "\udcff", ".json"])
def test_every_other_directory_entry_can_be_a_name(name: str) -> None:
    check_name(name)
