"""How many descriptors a mount may have; the channel shares them out among users
(`channel/holders.c`)."""

from __future__ import annotations

import resource

from cowfs.system.inherited import DESCRIPTORS

# With fewer than this one program can come to the end of them: the log says so, and doctor.
FEW = 1 << 16


def highest(*, raises: bool) -> int:
    """How many this process could have; *raises*: with CAP_SYS_RESOURCE."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(DESCRIPTORS, _nr_open()) if raises else min(hard, _nr_open())


def limit() -> int:
    """How many this process has; `inherited.drop_limits` has raised it as far as may be."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _nr_open() -> int:
    try:
        with open("/proc/sys/fs/nr_open", encoding="ascii") as file:
            return int(file.read())
    except OSError:
        return DESCRIPTORS
