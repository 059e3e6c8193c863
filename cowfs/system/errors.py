"""The errors that a user of cowfs sees, each with its exit code.

This file knows how a failure is presented: one line that says what went wrong, with which thing,
and what to do about it. It does not know where failures come from. Code below the command line
raises `OSError` with the errno that a caller should see, and whoever knows what the user asked for
turns it into one of these.
"""

from __future__ import annotations


class CowfsError(Exception):
    """A failure that is told to the user as one line on stderr.

    `str()` of it is that line. `exit_code` is the status of the process, as in mount(8).
    """

    exit_code = 32


class UsageError(CowfsError):
    """The call is wrong, or the caller lacks the permission for it."""

    exit_code = 1


class SystemFailure(CowfsError):  # noqa: N818 -- the name says what failed
    """The machine cannot do it: out of memory, no /dev/fuse, cannot fork."""

    exit_code = 2


class InternalError(CowfsError):
    """A fault of cowfs itself."""

    exit_code = 4


class Interrupted(CowfsError):  # noqa: N818 -- the name says what failed
    """The user stopped it (SIGINT, SIGTERM)."""

    exit_code = 8


class MountFailure(CowfsError):  # noqa: N818 -- the name says what failed
    """The mount, or the work on the store that it needs, failed."""

    exit_code = 32


EXIT_CODES: dict[int, str] = {
    0: "success",
    UsageError.exit_code: "incorrect invocation or permissions",
    SystemFailure.exit_code: "system error (out of memory, cannot fork, no /dev/fuse)",
    InternalError.exit_code: "internal bug of cowfs",
    Interrupted.exit_code: "interrupted by the user",
    MountFailure.exit_code: "the mount, unmount, clone or import failed",
}
"""Every exit code of the command line and what it means, as in mount(8), EXIT STATUS."""

CHECK_LEFT = 16
CHECK_REPAIRED = 64
# fsck(8) says 4 and 1 here, which every other command of cowfs uses as mount(8) does.

CHECK_EXIT_CODES: dict[int, str] = {
    0: "nothing is wrong, but for what is called harmless",
    CHECK_REPAIRED: "errors were found, and all of them were repaired",
    CHECK_LEFT: "errors were found, and some are left",
    MountFailure.exit_code: "it could not be examined: in use, or the store cannot be read",
}
"""The exit codes of `cowfs check`, beside those for a wrong call and the like."""

DIFF_SAME, DIFF_DIFFERENT, DIFF_TROUBLE = 0, 1, 2

DIFF_EXIT_CODES: dict[int, str] = {
    DIFF_SAME: "there is no difference",
    DIFF_DIFFERENT: "there are differences",
    DIFF_TROUBLE: "it could not be told: a wrong call, no such copy, or an error while reading",
}
"""The exit codes of `cowfs diff`, as those of diff(1), beside those for a bug and the like."""

WARM_EXIT_CODES: dict[int, str] = {
    0: "everything was read, or as much as the limit allows",
    UsageError.exit_code: "a path does not exist or may not be looked at, or nothing is mounted "
    "there any more; nothing was read",
    SystemFailure.exit_code: "files that are named could not be read; the others were",
    Interrupted.exit_code: "interrupted by the user",
}
"""The exit codes of `cowfs warm`."""
