"""What a message says to paste is what a shell makes of it."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowfs.commands.report import printable
from cowfs.system import remedy


def words_of(shell: str, pasted: str) -> list[bytes]:
    """The arguments that a shell makes of a pasted line, behind its first word."""
    script = f"f() {{ printf '%s\\0' \"$@\"; }}; f {os.fsdecode(os.fsencode(pasted))}"
    done = subprocess.run([shell, "-c", script], capture_output=True, check=True)
    return done.stdout.split(b"\0")[:-1]


@pytest.mark.parametrize(
    ("pasted", "shown"),
    [
        (remedy.command("cowfs list"), "cowfs list"),
        (remedy.command("cowfs rm", "job-42"), "cowfs rm job-42"),
        (remedy.command("cowfs rm", r"mnt-job\x2d42"), r"cowfs rm 'mnt-job\x2d42'"),
        (remedy.command("cowfs rm", "a b", store="/c d"), "cowfs rm --store '/c d' 'a b'"),
        (remedy.command("cowfs rm", "-x", store="/s"), "cowfs rm --store /s -- -x"),
        (remedy.command("mkdir -p", "it's"), "mkdir -p 'it'\"'\"'s'"),
        (remedy.command("umount", "/\n\udcff\x1b1"), r"umount $'/\n\377\0331'"),
    ],
)
def test_a_command_is_shown_as_a_person_would_write_it(pasted: str, shown: str) -> None:
    assert pasted == shown


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20))
def test_any_shell_gives_the_words_back(word: str) -> None:
    assert words_of("sh", remedy.quoted(word)) == [word.encode()]


@given(st.binary(max_size=20).filter(lambda data: 0 not in data))
def test_bytes_that_nobody_sees_come_back_too_and_nothing_of_them_is_shown(data: bytes) -> None:
    pasted = remedy.quoted(os.fsdecode(data))
    assert words_of("bash", pasted) == [data]
    assert printable(pasted) == pasted
