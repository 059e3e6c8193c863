"""Filling the page cache with what a path shows, before somebody waits for it.

Knows which files on disk hold those bytes, and how to read them without keeping others from theirs.
Changes nothing.
"""

__all__ = ["filling"]
