"""One kernel from its archive to the verdicts on every check."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from integration.kernels.differences import Verdict, judge
from integration.kernels.distributions import kernel
from integration.kernels.emulator import Emulator, SilenceError

#: Seconds for a machine with all groups, on a host whose processors have other things to do, too.
PATIENCE = 14400.0
# What no kernel should have to say.
_COMPLAINTS = re.compile(
    r"BUG|WARNING: |Oops|blocked for more than|general protection|Kernel panic|Corruption"
)


class Outcome(NamedTuple):
    """What came of one machine."""

    release: str
    seconds: float
    verdicts: list[Verdict]

    @property
    def faults(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.is_fault]


def try_kernel(
    name: str,
    package: Path,
    update: Path,
    directory: Path,
    *,
    groups: tuple[str, ...] = (),
    ways: tuple[str, ...] = (),
    cases: tuple[str, ...] = ("*",),
    patience: float = PATIENCE,
    tell: Callable[[str, float, str | None], None] | None = None,
) -> Outcome:
    """Boot a kernel of `distributions` and do these groups of checks, in these ways of serving.

    None named: all. *cases*: patterns of those that `compare` does. *update*: a newer version of
    *package*. *directory*: a new one, for this machine.
    """
    began = time.monotonic()
    plan = {"groups": groups, "ways": ways, "cases": cases}
    machine = Emulator(directory, kernel(name), package, update, plan)
    release = "none"
    at = "boot"
    ends: list[tuple[str, float, str | None]] = []

    def end(check: str, seconds: float, why: str | None) -> None:
        ends.append((check, seconds, why))
        if tell is not None:
            tell(check, seconds, why)

    with machine.boot():
        try:
            for event in machine.events(patience):
                match event["event"]:
                    case "kernel":
                        release, at = event["release"], "its first check"
                    case "begin":
                        at = event["check"]
                    case "end":
                        end(event["check"], event["seconds"], event["why"])
                    case "broken":
                        end("guest", 0.0, event["why"])
        except SilenceError as error:
            end(at, 0.0, f"{error}; the last that it said:\n{machine.console()[-3000:]}")
    said = [line for line in machine.console().splitlines() if _COMPLAINTS.search(line)]
    end("kernel log", 0.0, "\n".join(said) or None)
    version = re.match(r"(\d+)\.(\d+)", release)
    numbers = (int(version[1]), int(version[2])) if version else (0, 0)
    return Outcome(release, time.monotonic() - began, judge(numbers, ends))
