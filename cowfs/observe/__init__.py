"""Who does what with a mount: what is counted, read from outside of those who serve.

Knows where the counters are, which files on disk belong to a copy, and what the kernel tells of
reads and writes that nobody but it sees. Changes nothing, and has whoever serves do nothing.
"""

__all__ = ["activity", "exposition", "sample"]
