"""Tables: one line for each row, whatever is in it and however narrow the terminal is."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowfs.commands import columns
from cowfs.commands.columns import Column, at_the_left, in_the_middle

_ROW = (Column("NAME", in_the_middle), Column("SIZE"), Column("PATH", at_the_left))


class Terminal(io.StringIO):
    """A stream that says that it is one."""

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def drawn(rows: list[tuple[str, ...]], out: io.StringIO) -> list[str]:
    columns.table(_ROW[: len(rows[0])], rows, out)
    return out.getvalue().splitlines()


def test_columns_line_up_whatever_is_in_them() -> None:
    out = io.StringIO()
    lines = drawn([("模型", "1 B"), ("a\x1b[2J", "12 B")], out)
    assert lines == ["NAME      SIZE", "模型      1 B", "a\\x1b[2J  12 B"]


def test_nothing_is_cut_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert "y" * 500 in drawn([("y" * 500, "1 B", "/p")], io.StringIO())[1]


def test_names_are_cut_in_the_middle_and_paths_at_the_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    lines = drawn([("a-name-that-is-long", "1 B", "/data/models/llama")], Terminal())
    assert lines == ["NAME         SIZE  PATH", "a-nam…-long  1 B   …dels/llama"]


def test_an_ellipsis_that_the_terminal_cannot_show_is_three_dots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Ascii(Terminal):
        encoding = "ascii"  # type: ignore[assignment]

    monkeypatch.setenv("COLUMNS", "30")
    assert "...ta/models/llama" in drawn([("name", "1 B", "/data/models/llama" * 3)], Ascii())[1]


@given(
    rows=st.lists(st.tuples(st.text(), st.text(max_size=6), st.text()), min_size=1, max_size=4),
    room=st.integers(80, 200),
)
def test_each_row_is_one_line_that_fits(rows: list[tuple[str, ...]], room: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(room))
        out = Terminal()
        columns.table((_ROW[0], Column("S", at_the_left), _ROW[2]), rows, out)
    lines = out.getvalue().split("\n")[:-1]
    assert len(lines) == len(rows) + 1
    assert all(columns.width(line) <= room for line in lines)


def test_a_name_is_text_and_no_markup() -> None:
    assert drawn([("[red]x[/red]", "1 B")], Terminal())[1].startswith("[red]x[/red]")
