"""Templates and copies on disk, and the records of what runs.

Knows where a store is, what is in it, which locks keep it, how a source is sealed, and what may go.
Does not know how a copy is served.
"""

__all__ = [
    "collecting",
    "copies",
    "directory",
    "emptying",
    "ending",
    "glance",
    "lowers",
    "names",
    "naming",
    "overlayfs",
    "registry",
    "remedies",
    "runtime",
    "seal",
    "snapshot",
    "space",
    "store",
    "templates",
]
