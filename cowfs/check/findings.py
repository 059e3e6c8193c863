"""What `cowfs check` has to say: findings, and what they come to.

Pure data. Where they come from is in examine.py and below it, how they look on a terminal in the
command line.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from cowfs.system.errors import CHECK_LEFT, CHECK_REPAIRED, MountFailure


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    path: of the file, absolute, as `os.fsdecode` gives it. problem: a word for programs. harmless:
    nobody can notice it, and a crash leaves such things; only errors count for the exit code.
    remedy: what to do about it; for a repairable one what a repair does.
    """

    path: str
    problem: str
    detail: str
    remedy: str
    harmless: bool = False
    repaired: bool = False

    @property
    def status(self) -> str:
        """ "repaired", "harmless" or "error"."""
        return "repaired" if self.repaired else "harmless" if self.harmless else "error"


@dataclass
class Report:
    """What a whole check has found. `unexamined`: named copies that somebody uses."""

    copies: int = 0
    templates: int = 0
    entries: int = 0
    findings: list[Finding] = field(default_factory=list)
    in_use: list[str] = field(default_factory=list)
    unexamined: list[str] = field(default_factory=list)

    def count(self, status: str) -> int:
        return sum(finding.status == status for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """As docs/operations.md has it: what is left counts more than what was repaired."""
        if self.count("error"):
            return CHECK_LEFT
        if self.unexamined:
            return MountFailure.exit_code
        if any(finding.repaired and not finding.harmless for finding in self.findings):
            return CHECK_REPAIRED
        return 0

    def as_json(self) -> dict[str, Any]:
        """One object: counts, findings each with its `status`, copies in use, the exit code."""
        return {
            "clean": not self.count("error"),
            "exit_code": self.exit_code,
            "copies": self.copies,
            "templates": self.templates,
            "entries": self.entries,
            "errors": self.count("error"),
            "repaired": self.count("repaired"),
            "harmless": self.count("harmless"),
            "in_use": self.in_use,
            "findings": [
                {**asdict(finding), "status": finding.status} for finding in self.findings
            ],
        }
