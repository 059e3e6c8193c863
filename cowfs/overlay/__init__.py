"""A copy as programs see it: from pyfuse3's handlers to the two layers.

Knows names, attributes, which file backs an open, and what changes when somebody writes. Is given
descriptors of the layers: which copy they are, and who keeps the mount, it does not know.
"""

__all__ = [
    "backing",
    "inodes",
    "inplace",
    "operations",
    "overlay",
    "priming",
    "restore",
    "touching",
    "turns",
    "vault",
]
