"""The life of a mount: its options, its processes, from the order to the end.

Knows who starts whom, what they say to each other, and what outlives whom. What a copy looks like
to programs is the overlay's, what is on disk the store's.
"""

__all__ = [
    "attendant",
    "daemon",
    "forker",
    "keeper",
    "launch",
    "mountpoint",
    "options",
    "origin",
    "preflight",
    "privileges",
    "probes",
    "unmount",
    "upgrade",
]
