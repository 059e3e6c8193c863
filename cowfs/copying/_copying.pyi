"""The typed face of the extension module that copies through io_uring.

Every `OSError` carries the errno of the operation that failed.
"""

from collections.abc import Sequence
from typing import final

@final
class Ring:
    """An io_uring with buffers of its own, registered where the limit of locked memory allows.

    For one thread at a time, of the process that made it. It is freed with the object.
    """

    def __init__(self, depth: int, block: int, patience: float = 10.0) -> None:
        """`depth` buffers of `block` bytes, so at most as many reads and writes at once.

        patience: seconds. When nothing at all is over by then, a copy goes on without the ring.
        Linux 5.11.
        OSError: ENOSYS the kernel has no io_uring, EPERM it is switched off (the sysctl
        kernel.io_uring_disabled, a seccomp filter), ENOMEM.
        """

    @property
    def failed(self) -> int:
        """The index of the segment at which the last `copy` failed."""

    def copy(self, segments: Sequence[tuple[int, int, int, int]]) -> None:
        """Copy each (source descriptor, target descriptor, offset, length in bytes).

        Offsets are the same on both sides. Returns when all is written (to the page cache, as
        write(2) does). Releases the GIL. OSError when an operation fails, ENODATA when a source
        ends within its segment; then all operations are over, and what was copied is not known.
        A signal whose handler raises ends it likewise.
        """
