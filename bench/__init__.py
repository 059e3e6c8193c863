"""Measures cowfs against its peers: XFS, a reflink copy, overlayfs, fuse-overlayfs, pyfuse3.

`python -m bench` is run from the root of the repository. Nothing here imports cowfs: the installed
command is driven as a user would drive it, so what is measured is what is shipped.
"""
