"""Plain copies, made without FUSE: `cowfs import` and `cowfs clone`.

Knows how a copy is planned, made aside, taken up again, compared and published as a whole. Does not
know of stores or mounts: what it makes are ordinary files.
"""

__all__ = ["clone", "importing"]
