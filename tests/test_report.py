"""What people see: sizes, ages, tables; and nothing that their terminal would obey."""

from __future__ import annotations

import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowfs import report


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


def test_columns_line_up_whatever_is_in_them() -> None:
    out = io.StringIO()
    report.table(("NAME", "SIZE"), [("模型", "1 B"), ("a\x1b[2J", "12 B")], out)
    assert out.getvalue() == "NAME      SIZE\n模型      1 B\na\\x1b[2J  12 B\n"


def test_a_table_on_a_terminal_takes_names_as_text_and_not_as_markup() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    report.table(("NAME",), [("[red]x[/red]",), ("y" * 500,)], out)
    assert "[red]x[/red]" in out.getvalue()
    assert out.getvalue().count("y") == 500
