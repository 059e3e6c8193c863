"""cowfs: instant copy-on-write copies of directories, as a FUSE overlay on XFS."""

__version__ = "0.1.0"
