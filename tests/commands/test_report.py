"""What people see: sizes, ages, tables; and nothing that their terminal would obey."""

from __future__ import annotations

import io
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowfs.commands import report


@given(st.binary())
def test_no_name_reaches_the_terminal_as_more_than_one_harmless_line(name: bytes) -> None:
    shown = report.printable(os.fsdecode(name))
    assert shown.isprintable()
    shown.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("model", "model"),
        ("Modell für 模型", "Modell für 模型"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("two\nlines\r\t", "two\\x0alines\\x0d\\x09"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        ("a\u202eb", "a\\u202eb"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert report.printable(text) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024 * 1024 - 1, "1.0 MiB"),
        (1258291, "1.2 MiB"),
        (139 << 30, "139.0 GiB"),
        (1 << 63, "8.0 EiB"),
    ],
)
def test_size(count: int, shown: str) -> None:
    assert report.human_size(count) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0"),
        (1023, "1023"),
        (1258291, "1.2M"),
        (10 << 20, "10M"),
        ((1023 << 20) + 900000, "1024M"),
        (139 << 30, "139G"),
    ],
)
def test_size_in_a_column(count: int, shown: str) -> None:
    assert report.compact_size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-3, "0s"),
        (0.4, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (7200, "2h"),
        (40 * 86400, "40d"),
        (800 * 86400, "2y"),
    ],
)
def test_age(seconds: float, shown: str) -> None:
    assert report.age(seconds) == shown


def test_count() -> None:
    assert report.count(1, "file") == "1 file"
    assert report.count(0, "file") == "0 files"
    assert report.count(2, "entry", "entries") == "2 entries"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("short", ["short"]),
        ("aaa bbb ccc ddd eee fff", ["aaa bbb ccc ddd eee", "  fff"]),
        ("aaa " + "b" * 30 + " c", ["aaa", "  " + "b" * 30, "  c"]),
        ("模型模型模型 模型 模型 模型", ["模型模型模型 模型", "  模型 模型"]),
        ("two  blanks in  a  name", ["two  blanks in  a", "  name"]),
        ("discard with: cowfs rm copy", ["discard with:", "  cowfs rm copy"]),
        (
            "with: cowfs import model /xfs/volume; and mount that",
            ["with:", "  cowfs import model /xfs/volume;", "  and mount that"],
        ),
        (
            "do this: chown root /a; chmod 700 /a",
            ["do this:", "  chown root /a; chmod 700 /a"],
        ),
    ],
)
def test_lines_break_between_words_and_in_no_command(text: str, lines: list[str]) -> None:
    assert report.folded(text, 20) == lines
    assert report.folded(text, None) == [text]


class Terminal(io.StringIO):
    """A stream that says that it is one."""

    def isatty(self) -> bool:
        return True


def test_a_long_sealing_is_shown_and_the_bar_goes_away_again() -> None:
    out = Terminal()
    bar = report.SealingBar(out)
    bar.QUIET_SECONDS = 0
    bar.begin(1000, 5 << 20)
    bar.advance(400)
    bar.advance(600)
    bar.close()
    assert "sealing 1000 files, 5.0 MiB" in out.getvalue()
    assert "1000/1000" in out.getvalue()
    assert out.getvalue().rstrip("\n").endswith("\x1b[2K")  # the line is erased
    bar.close()


def test_a_short_sealing_shows_nothing() -> None:
    out = Terminal()
    bar = report.SealingBar(out)
    bar.begin(10, 100)
    bar.advance(10)
    bar.close()
    assert out.getvalue() == ""


def test_a_sealing_that_starts_again_shows_the_new_numbers() -> None:
    out = Terminal()
    bar = report.SealingBar(out)
    bar.QUIET_SECONDS = 0
    bar.begin(10, 100)
    bar.advance(5)
    bar.begin(20, 200)
    bar.advance(20)
    bar.close()
    assert "sealing 20 files" in out.getvalue()
    assert "20/20" in out.getvalue()


def test_nobody_watches_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with report.sealing_progress() as progress:
        assert progress is None
    monkeypatch.setattr(sys, "stderr", Terminal())
    with report.sealing_progress() as progress:
        assert progress is not None


def test_the_bar_of_warm_counts_bytes() -> None:
    bar = report.WarmingBar(out := Terminal(), "reading")
    bar.QUIET_SECONDS = 0.0
    bar.begin(1, 32 << 20)
    bar.advance(32 << 20)
    bar.close()
    assert "reading 1 file, 32.0 MiB" in out.getvalue()
    assert "32.0/32.0 MiB" in out.getvalue()
