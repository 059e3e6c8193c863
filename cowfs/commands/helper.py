"""What both helpers of mount(8) share: how they are called, and the namespace that -N means.

mount(8), section EXTERNAL HELPERS, is the rule: options may stand before, between and behind the
operands, and come one letter each.
"""

from __future__ import annotations

import getopt
import os
from collections.abc import Sequence
from typing import NamedTuple

from cowfs.system.errors import MountFailure, UsageError

_MNT_NAMESPACE = "/proc/{}/ns/mnt"


class Option(NamedTuple):
    """One letter. value: what its argument is called, empty when it has none."""

    letter: str
    value: str
    help: str


class Call:
    """The words of a call, sorted."""

    def __init__(
        self, program: str, operands: str, options: Sequence[Option], arguments: Sequence[str]
    ) -> None:
        """*operands* as a user reads them. UsageError with what a right call is."""
        letters = "".join(option.letter + (":" if option.value else "") for option in options)
        usage = f"{synopsis(program, operands, options)}, as mount(8) and umount(8) call it"
        try:
            given, self.operands = getopt.gnu_getopt(list(arguments), letters)
        except getopt.GetoptError as error:
            raise UsageError(f"{error.msg}: usage: {usage}") from None
        if len(self.operands) != len(operands.split()):
            raise UsageError(f"usage: {usage}")
        self._given = [(name[1:], value) for name, value in given]

    def has(self, letter: str) -> bool:
        """Whether this letter was given."""
        return any(name == letter for name, _ in self._given)

    def values(self, letter: str) -> list[str]:
        """What was given with this letter, in its order."""
        return [value for name, value in self._given if name == letter]


def synopsis(program: str, operands: str, options: Sequence[Option]) -> str:
    """One line: how it is called."""
    flags = "".join(option.letter for option in options if not option.value)
    words = [f"[-{option.letter} {option.value}]" for option in options if option.value]
    return " ".join([program, operands, f"[-{flags}]", *words])


def enter_namespace(namespace: str) -> None:
    """Go on in the mount namespace of this process id, or of this file. MountFailure."""
    from cowfs.system import syscalls

    path = _MNT_NAMESPACE.format(namespace) if namespace.isdecimal() else namespace
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.enter_mount_namespace(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise MountFailure(f"cannot enter the mount namespace {path}: {error.strerror}") from None
