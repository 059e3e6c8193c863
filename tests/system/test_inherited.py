"""Limits of a mount's processes, where the system lets nobody set any."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from cowfs.system import inherited


@pytest.mark.parametrize("hard", [resource.RLIM_INFINITY, 1 << 30, 4096])
def test_limits_that_cannot_be_set_end_nobody(monkeypatch: pytest.MonkeyPatch, hard: int) -> None:
    """So it is when fs.nr_open has become less than the hard limit: setrlimit(2) says EPERM."""
    asked = []

    def refuse(limit: int, values: tuple[int, int]) -> None:
        asked.append(limit)
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _limit: (1024, hard))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    monkeypatch.setattr(inherited.os, "umask", lambda _mask: 0)
    inherited.drop_limits()
    assert set(asked) == set(inherited.LIMITS)


def test_a_hard_limit_above_the_systems_becomes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def set_limit(_limit: int, values: tuple[int, int]) -> None:
        if values[1] > 1 << 20:
            raise ValueError
        done.append(values)

    monkeypatch.setattr(resource, "getrlimit", lambda _limit: (1024, 1 << 30))
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    inherited._set_limit(resource.RLIMIT_NOFILE, 1 << 20)
    assert done == [(1 << 20, 1 << 20)]


# The caller's key is looked for, in the session keyring that a process has: keyctl_search(3). It
# lives on in any case: descriptors that the caller has opened hold his credentials, and so it.
KEYRING = """
import ctypes, os
from cowfs.system import inherited
libc = ctypes.CDLL(None)
add_key, keyctl = (248, 250) if os.uname().machine == "x86_64" else (217, 219)
def call(*arguments):
    numbers = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    return libc.syscall(*numbers)
def finds_it():
    return call(keyctl, 10, -3, b"user", b"cowfs-test", 0) > 0
assert call(keyctl, 1, 0) > 0
assert call(add_key, b"user", b"cowfs-test", b"x", 1, -3) > 0
print(finds_it())
inherited.drop_scheduling()
print(finds_it())
"""


def test_the_session_keyring_of_the_caller_is_left() -> None:
    done = subprocess.run(
        [sys.executable, "-c", KEYRING], check=True, capture_output=True, text=True
    )
    assert done.stdout == "True\nFalse\n"
