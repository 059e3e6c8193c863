"""A line in the log of a process that has to stay small: keeper and attendant.

It looks like the lines of the daemon, which has Python's logging for them: 1.7 MB.
"""

from __future__ import annotations

import os
import time

from cowfs.mount import conversation
from cowfs.system import inherited


def log(line: str) -> None:
    """One line on stderr; where that cannot be written to, nothing."""
    if inherited.is_journal(2):  # it knows when, and who
        line = f"<5>{line}\n"
    else:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} cowfs-keeper[{os.getpid()}] {line}\n"
    try:
        os.write(2, conversation.encoded(line))
    except OSError:
        pass
