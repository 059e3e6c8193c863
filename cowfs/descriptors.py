"""How many descriptors a mount may have.

Each open file of a mount takes two at most, one in the daemon and one in the kernel's backing
table; so does a removed one that is still in use, and the keeper has one of that too.  The channel
shares them out among users (`channel/holders.c`).
"""

from __future__ import annotations

import resource

# What is asked for; fs.nr_open bounds it, and has the same value by default.
WANTED = 1 << 20

# With fewer than this one program can come to the end of them: the log says so, and doctor.
FEW = 1 << 16


def highest(*, raises: bool) -> int:
    """How many this process could have; *raises*: with CAP_SYS_RESOURCE."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(WANTED, _nr_open()) if raises else min(hard, _nr_open())


def raise_limit() -> int:
    """Raise RLIMIT_NOFILE as far as may be; returns what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (highest(raises=True), hard):
        if wanted <= soft:
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
        except (OSError, ValueError):
            continue  # not ours to raise
        return wanted
    return soft


def _nr_open() -> int:
    try:
        with open("/proc/sys/fs/nr_open", encoding="ascii") as file:
            return int(file.read())
    except OSError:
        return WANTED
