"""Commands that a message suggests, as a person can paste them into a shell.

Every command in a message is made here, so that no name of a file or copy, which others may have
chosen, becomes another word, an option, or something that the shell obeys. What a message shows of
it passes `printable` unchanged: there is nothing in it that a terminal would obey either.

tests/test_remedies.py finds commands in messages that were written in another way.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

_NAMED = {ord("\n"): r"\n", ord("\t"): r"\t", ord("'"): r"\'", ord("\\"): r"\\"}


def command(
    words: str, *operands: str, store: str | None = None, options: Sequence[str] = ()
) -> str:
    """The command that these words begin, such as "cowfs rm", on these operands.

    The words are ours and stand as they are; operands are anybody's. store: the value of --store.
    options: others, each a word.
    """
    option = [] if store is None else ["--store", quoted(store)]
    guard = ["--"] if any(operand.startswith("-") for operand in operands) else []
    return " ".join([words, *map(quoted, options), *option, *guard, *map(quoted, operands)])


def quoted(text: str) -> str:
    """One word for a shell: sh(1), or where there are bytes that nobody can see, one that knows
    $'...' (bash, zsh, ksh, POSIX of 2024)."""
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_escaped, text))}'"


def _escaped(char: str) -> str:
    named = _NAMED.get(ord(char))
    if named is not None:
        return named
    if char.isprintable():
        return char
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(char))
