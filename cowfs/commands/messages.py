"""How a command ends: one line on stderr for every failure, and the exit code of mount(8) for it.

The same for `cowfs` and for the helpers of mount(8), which cannot wait for what parses the command
line of the former.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from cowfs.commands import report
from cowfs.system.errors import CowfsError, InternalError, Interrupted, SystemFailure, UsageError

DEBUG_VARIABLE = "COWFS_DEBUG"


def say(program: str, message: str) -> None:
    """One line on stderr, which a terminal gets in lines of its width (`report.folded`)."""
    report.tell(f"{program}: {message}", out=sys.stderr)
    sys.stderr.flush()


def warn(program: str, message: str) -> None:
    """The same for what is no failure."""
    say(program, f"warning: {message}")


def show_log(program: str) -> None:
    """Say what the modules below log: warnings, and what is worse."""
    import logging

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warn(program, record.getMessage())

    logging.getLogger("cowfs").handlers = [Lines()]


def told(program: str, run: Callable[[], int]) -> int:
    """The exit code that run() returns, or that of its failure, which is said in one line."""
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        # names are bytes that others chose, and the locale may be "C"
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = run()
        sys.stdout.flush()
    except CowfsError as error:
        return _failed(program, error)
    except KeyboardInterrupt:
        return _failed(program, Interrupted("interrupted"))
    except BrokenPipeError:
        # Whoever read our output has enough. Python would complain when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UsageError.exit_code
    except MemoryError:
        return _failed(program, SystemFailure("out of memory"))
    except Exception as error:
        if DEBUG_VARIABLE in os.environ:
            raise
        return _failed(
            program,
            InternalError(
                f"unexpected {type(error).__name__}: {error}; this is a bug, {DEBUG_VARIABLE}=1 "
                "shows where"
            ),
        )
    return code


def _open_standard_streams() -> None:
    """Those that our caller has closed: what is opened next, here and in what we start, must not
    become one of them."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(fd)
            except OSError:
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it is the lowest free
            setattr(sys, name, os.fdopen(fd, "r" if fd == 0 else "w", closefd=False))


def _failed(program: str, error: CowfsError) -> int:
    say(program, str(error))
    return error.exit_code
