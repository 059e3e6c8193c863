"""The channel: native code between the kernel and pyfuse3.

It owns ``/dev/fuse``, performs ``mount(2)`` and INIT, answers whatever concerns the data of open
files, and relays the rest to an unmodified pyfuse3 over a socket pair. It decides nothing about
names or copies: Python tells it what backs the opens of a node.

This package only names what the extension module offers; `_channel.pyi` describes it, and
`channel.h` is the place to begin reading the C sources.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._channel import (
    AGAIN,
    ATTRIBUTE_AGAIN,
    BYPASS,
    CACHED,
    EXCHANGE_NUMBER,
    FOREVER,
    PASSTHROUGH,
    PRIVATE,
    SHARED,
    STATX,
    TAKES_SETGID,
    UNNAMED,
    Channel,
    check_ledger,
    lost_privileges,
    read_counts,
)

if TYPE_CHECKING:
    from ._channel import Counts

__all__ = [
    "AGAIN",
    "ATTRIBUTE_AGAIN",
    "BYPASS",
    "CACHED",
    "EXCHANGE_NUMBER",
    "FOREVER",
    "PASSTHROUGH",
    "PRIVATE",
    "SHARED",
    "STATX",
    "TAKES_SETGID",
    "UNNAMED",
    "Channel",
    "Counts",
    "check_ledger",
    "lost_privileges",
    "read_counts",
]
