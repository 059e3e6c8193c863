"""Native code that moves the bytes of files through io_uring.

It knows descriptors, offsets and buffers, and nothing of names or trees. `_copying.pyi` describes
the extension module that this package names.
"""

from __future__ import annotations

from ._copying import Ring

__all__ = ["Ring"]
