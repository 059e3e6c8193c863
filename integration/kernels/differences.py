"""What is known to differ on a kernel: checks that fail there, and must fail.

A check that is listed here and does not fail is a fault as well: then the list is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple


class Difference(NamedTuple):
    """Checks by a pattern of their names, the kernels [since, before), and what they say then."""

    checks: str
    says: str
    why: str
    since: tuple[int, int] = (0, 0)
    before: tuple[int, int] = (99, 0)


#: docs/semantics.md tells them to users.
DIFFERENCES: tuple[Difference, ...] = (
    *(
        Difference(
            f"compare: *: opening-o_tmpfile_{case}",
            "Operation not supported",
            "neither FUSE nor overlayfs has O_TMPFILE",
            before=(6, 1),
        )
        for case in (
            "makes_a_file_without_a_name",
            "with_o_excl_stays_without_a_name",
            "belongs_to_who_made_it",
        )
    ),
    Difference(
        "compare: relayed: sizes-fallocate_in_every_mode",
        "ENOTSUP",
        "FUSE has no FALLOC_FL_ZERO_RANGE",
        before=(5, 14),
    ),
    Difference(
        "compare: relayed: acls-list_by_somebody_outside_of_the_group_clears_setgid",
        "'2775' is not '0775'",
        "FUSE does not say who sets an ACL",
        before=(5, 13),
    ),
    Difference(
        "compare: overlay: execution-program_that_runs_is_not_written",
        "open('sleep', 1): ",
        "a program that runs holds off writers of the template's file, not of overlayfs's",
        before=(5, 15),
    ),
    Difference(
        "compare: overlay: transfer-flags_of_one_write",
        "10 is not 13",
        "overlayfs does not hand RWF_APPEND on",
        before=(6, 7),
    ),
    Difference(
        "compare: *: times-times_are_kept_to_the_nanosecond",
        "XFS itself: (2147483647000000000, ",
        "the machine's volume has no bigtime: its times end in 2038",
    ),
)


class Verdict(NamedTuple):
    """On one check. `known`: it fails as the list says."""

    check: str
    seconds: float
    why: str | None
    known: Difference | None = None

    @property
    def is_fault(self) -> bool:
        return self.why is not None and self.known is None


def judge(release: tuple[int, int], ends: Iterable[tuple[str, float, str | None]]) -> list[Verdict]:
    """*ends*: the checks' names, how long each took, and why it failed."""
    listed = [entry for entry in DIFFERENCES if entry.since <= release < entry.before]
    verdicts = []
    for check, seconds, why in ends:
        entry = next((entry for entry in listed if fnmatchcase(check, entry.checks)), None)
        if entry is None:
            verdicts.append(Verdict(check, seconds, why))
        elif why is None:
            surprise = f"is as on XFS, and was expected to say {entry.says!r}: {entry.why}"
            verdicts.append(Verdict(check, seconds, surprise))
        else:
            verdicts.append(Verdict(check, seconds, why, entry if entry.says in why else None))
    return verdicts
