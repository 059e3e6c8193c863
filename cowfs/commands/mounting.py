"""`cowfs mount`, without what parses the other commands.

A mount must not wait for click, which takes longer to import than all else that it needs. What most
calls say can be read without: `-o OPTIONS` and two operands. Every other call, and with it every
wrong one, is left to `cli.py`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from cowfs.commands import messages, report, which
from cowfs.mount import launch, preflight
from cowfs.mount.options import parse

# How click is asked for completions.
_COMPLETION = "_COWFS_COMPLETE"


class Call(NamedTuple):
    """A mount in the background that is to be made."""

    options: tuple[str, ...]
    source: str
    mountpoint: str


def plain(words: Sequence[str]) -> Call | None:
    """What the words behind `cowfs` say if they are those of a plain mount, else None."""
    if not words or words[0] != "mount" or _COMPLETION in os.environ:
        return None
    options: list[str] = []
    operands: list[str] = []
    left = iter(words[1:])
    for word in left:
        if word == "-o":
            word = next(left, "-")
            options.append(word)
        else:
            operands.append(word)
        if word.startswith("-"):
            return None
    if len(operands) != 2:
        return None
    return Call(tuple(options), *operands)


def mount(program: str, call: Call, *, foreground: bool = False) -> int:
    """The exit code, once the mount answers, or has ended with *foreground*."""
    with preflight.comments_explained(call.source, call.mountpoint, *call.options):
        source, wanted = which.source(program, call.source, parse(call.options))
        return launch.mount(
            source,
            call.mountpoint,
            wanted,
            foreground=foreground,
            warn=lambda message: messages.warn(program, message),
            progress=report.sealing_progress,
        )
