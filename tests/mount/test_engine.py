"""What `-o engine=auto` takes, and what it is told by."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

import pytest

from cowfs.mount import engine, options, probes
from cowfs.mount.probes import Fuse
from cowfs.system.errors import UsageError

ASKED = ("passthrough=on", "passthrough=off", "clone=write", "clone=open", "inplace=*.h5")


@pytest.fixture(params=[True, False], ids=["passthrough", "no passthrough"])
def passthrough(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    offered: bool = request.param
    monkeypatch.setattr(engine, "has_passthrough", lambda: offered)
    return offered


def test_auto_takes_overlayfs_where_fuse_has_no_passthrough(passthrough: bool) -> None:
    for words in ("", "engine=auto", "ro", "ephemeral", "share_min=4k", "watchdog=5"):
        assert engine.prefers_overlayfs(options.parse([words])) is not passthrough, words


@pytest.mark.parametrize("word", ASKED)
def test_auto_takes_fuse_for_what_only_fuse_has(word: str, passthrough: bool) -> None:
    assert passthrough in (True, False)
    assert not engine.prefers_overlayfs(options.parse([word]))
    assert not engine.prefers_overlayfs(options.parse([word, "engine=fuse"]))


@pytest.mark.parametrize("word", ASKED)
def test_what_only_fuse_has_is_refused_with_overlayfs(word: str) -> None:
    with pytest.raises(UsageError, match="is for engine=fuse"):
        options.parse([word, "engine=overlay"])


def test_what_is_asked_for_is_taken(passthrough: bool) -> None:
    assert passthrough in (True, False)
    assert engine.prefers_overlayfs(options.parse(["engine=overlay,share_min=4k,watchdog=5"]))
    assert not engine.prefers_overlayfs(options.parse(["engine=fuse"]))


def _init(flags: int, flags2: int) -> bytes:
    """A request FUSE_INIT of minor 36 and later, linux/fuse.h."""
    return bytes(40) + struct.pack("<IIIII", 7, 45, 131072, flags, flags2) + bytes(44)


def test_the_kernels_init_says_whether_it_has_passthrough() -> None:
    def has_passthrough(request: bytes) -> bool:
        return Fuse.from_init(request).has_passthrough

    assert has_passthrough(_init(1 << 30, 1 << 5))
    assert not has_passthrough(_init(1 << 30, 0xFFFFFFFF & ~(1 << 5)))
    assert not has_passthrough(_init(0, 1 << 5))  # the second word means nothing
    assert not has_passthrough(_init(1 << 30, 1 << 5)[:56])  # Linux 5.10


def test_a_sandbox_that_refuses_the_question_gets_fuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> Fuse:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def missing() -> Fuse:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/dev/fuse")

    monkeypatch.setattr(probes, "fuse", refused)
    assert not engine.prefers_overlayfs(options.parse([""]))
    monkeypatch.setattr(probes, "fuse", missing)
    assert engine.prefers_overlayfs(options.parse([""]))
