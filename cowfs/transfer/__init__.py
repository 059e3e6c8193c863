"""Plain copies, made without FUSE: `cowfs import` and `cowfs clone`.

Knows how a copy is planned, made aside, taken up again, compared and published as a whole. What it
makes are ordinary files; of stores it knows only where the files behind a mounted copy are.
"""

__all__ = ["clone", "importing", "origin", "staging"]
