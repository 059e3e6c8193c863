"""Reading, rebuilding and removing whole trees, whose names anybody may have made.

Knows depth, hard links, descriptors and several processors. Does not know what a tree is for.
"""

__all__ = [
    "cloning",
    "filedata",
    "hub",
    "links",
    "mirror",
    "removal",
    "scan",
    "treewalk",
    "walk",
    "workers",
]
