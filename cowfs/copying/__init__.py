"""Native code that copies files: their bytes through io_uring, or whole plain files as clones.

It knows descriptors and names in an open directory, and nothing of trees or of what is kept where.
`_copying.pyi` and `_clones.pyi` describe the extension modules that this package names.
"""

from __future__ import annotations

from ._clones import clone_file, clone_files
from ._copying import Ring

__all__ = ["Ring", "clone_file", "clone_files"]
