"""The promises of `_channel.pyi` that concern Python objects; the core has tests in C.

Nothing is mounted: a channel without a kernel still has its socket pair and its table of nodes.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator

import pytest

from cowfs.channel import CACHED, PASSTHROUGH, PRIVATE, SHARED, Channel, check_ledger


@pytest.fixture
def channel() -> Iterator[Channel]:
    channel = Channel(passthrough=True, root_ino=128, max_cached=10)
    yield channel
    channel.close()


def null() -> int:
    return os.open("/dev/null", os.O_RDWR)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def test_constructor_takes_keywords_only_and_needs_both() -> None:
    with pytest.raises(TypeError):
        Channel(True, 128)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Channel(passthrough=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Channel(root_ino=128)  # type: ignore[call-arg]
    with pytest.raises(OverflowError):
        Channel(passthrough=True, root_ino=-1)


def test_a_channel_is_initialised_once(channel: Channel) -> None:
    with pytest.raises(ValueError, match="once"):
        channel.__init__(passthrough=True, root_ino=1)


def test_a_channel_that_was_never_initialised_says_so() -> None:
    raw = Channel.__new__(Channel)
    with pytest.raises(ValueError, match="__init__"):
        raw.drain()
    with pytest.raises(ValueError, match="__init__"):
        _ = raw.closed_fd


def test_before_start_nothing_is_agreed(channel: Channel) -> None:
    assert channel.passthrough is False
    assert channel.max_stack_depth == 1
    assert channel.daemon_fd >= 0
    assert not readable(channel.closed_fd)
    assert channel.read_error == 0
    assert channel.drain() == 0
    assert channel.counters() == {}


def test_start_without_mount_fails(channel: Channel) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        channel.start()


def test_mount_reports_the_errno_and_leaves_no_descriptor(channel: Channel) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=r"Errno") as caught:
        channel.mount(b"cowfs", b"/nonexistent/mountpoint", 0, b"")
    assert caught.value.errno in {errno.ENOENT, errno.EPERM, errno.EACCES}
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_opens_are_counted_by_access_mode(channel: Channel) -> None:
    assert channel.open(5, False) is False
    assert channel.writers(5) == 0
    channel.attach(5, null(), PRIVATE, CACHED, True)
    assert channel.open(5, False) is True
    assert channel.writers(5) == 1
    assert channel.revoke(5) == (PRIVATE, 1, 1, False)
    assert channel.revoke(6) is None


def test_attach_closes_its_descriptor_on_every_error(channel: Channel) -> None:
    channel.attach(5, null(), SHARED, CACHED, False)
    fd = null()
    with pytest.raises(FileExistsError):
        channel.attach(5, fd, SHARED, CACHED, False)
    assert not is_open(fd)
    fd = null()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        channel.attach(6, fd, SHARED, PASSTHROUGH, False)  # no kernel to register a backing id with
    assert not is_open(fd)
    fd = null()
    with pytest.raises(ValueError, match="SHARED or PRIVATE"):
        channel.attach(6, fd, 2, CACHED, False)
    assert not is_open(fd)
    fd = null()
    with pytest.raises(ValueError, match="READ_"):
        channel.attach(6, fd, SHARED, 3, False)
    assert not is_open(fd)


def test_switch_takes_the_descriptor_only_when_it_says_so(channel: Channel) -> None:
    fd = null()
    assert channel.switch(5, fd) is False
    channel.attach(5, null(), SHARED, CACHED, False)
    assert channel.switch(5, fd) is True
    assert channel.revoke(5) == (PRIVATE, 1, 0, False)
    spare = null()
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        channel.switch(5, spare)
    os.close(spare)
    channel.close()
    assert not is_open(fd)


def test_node_ids_use_all_64_bits(channel: Channel) -> None:
    node = 1 << 63 | 3 << 48 | 77
    channel.attach(node, null(), SHARED, CACHED, False)
    assert channel.open(node, False)
    assert not channel.open(77, False)
    for wrong in (-1, 1 << 64):
        with pytest.raises(OverflowError):
            channel.open(wrong, False)
    with pytest.raises(TypeError):
        channel.open("5", False)  # type: ignore[arg-type]


def test_names_that_cannot_be_are_refused(channel: Channel) -> None:
    for name in (b"", b"a/b", b"a\0b", b"x" * 256):
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            channel.invalidate_entry(1, name)
    channel.invalidate_entry(1, b"x" * 255)
    channel.invalidate_attr(1)


def test_close_may_be_repeated_and_makes_everything_harmless() -> None:
    channel = Channel(passthrough=True, root_ino=128)
    kept = null()
    channel.attach(5, kept, SHARED, CACHED, False)
    channel.close()
    channel.close()
    assert not is_open(kept)
    assert readable(channel.closed_fd)
    assert channel.drain() == 0
    assert channel.open(5, False) is False
    assert channel.writers(5) == 0
    assert channel.revoke(5) is None
    channel.forget(5)
    channel.invalidate_attr(5)
    channel.invalidate_entry(1, b"name")
    fd = null()
    assert channel.switch(5, fd) is False
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        channel.attach(5, fd, SHARED, CACHED, False)
    assert not is_open(fd)
    for call in (channel.start, lambda: channel.mount(b"a", b"b", 0, b"")):
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            call()


def test_an_object_that_goes_away_closes_everything() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    channel = Channel(passthrough=False, root_ino=128)
    channel.attach(5, null(), SHARED, CACHED, False)
    del channel
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_ledger_is_judged_in_words(channel: Channel) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        check_ledger(channel.ledger_fd, True)  # nothing was agreed on with a kernel yet
    nonsense = os.memfd_create("nonsense")
    with pytest.raises(ValueError, match="its ledger has another layout"):
        check_ledger(nonsense, True)
    os.close(nonsense)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        check_ledger(-1, True)
