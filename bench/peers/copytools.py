"""Commands that copy a tree, each as a user calls it."""

# ruff: noqa: ARG002 - every peer has the parameters of Peer, whether it needs them or not

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.environment import Environment
from bench.system import patient_teardown, run

from .base import Peer, View

_COPYTREE = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2], symlinks=True)"


class CopyTool(Peer):
    """A command with the source and the target behind it; the target is not there yet."""

    def __init__(self, name: str, *command: str) -> None:
        self.name = name
        self._command = command

    def missing(self, env: Environment) -> str | None:
        program = self._program(env)[0]
        return None if shutil.which(program) else f"{program} is not installed"

    def copy(self, env: Environment, source: Path, target: Path) -> None:
        """Copy; what the command leaves in memory is not on the disk yet."""
        run([*self._program(env), source, target], timeout=1800)

    @contextmanager
    def mounted(self, env: Environment, source: Path, *, private: bool = False) -> Iterator[View]:
        folder = env.folder(self.name)
        try:
            self.copy(env, source, folder / "tree")
            yield View(folder / "tree")
        finally:
            with patient_teardown():
                shutil.rmtree(folder)

    def _program(self, env: Environment) -> list[str]:
        return list(self._command)


class Rsync(CopyTool):
    """rsync copies what is in the source when that ends in a slash."""

    def copy(self, env: Environment, source: Path, target: Path) -> None:
        run([*self._program(env), f"{source}/", f"{target}/"], timeout=1800)


class CowfsTool(CopyTool):
    """A command of the cowfs that is measured."""

    def _program(self, env: Environment) -> list[str]:
        return [*env.cowfs, *self._command]


COPY_TOOLS: tuple[CopyTool, ...] = (
    CopyTool("cp", "cp", "-a"),
    CopyTool("cp-reflink", "cp", "-a", "--reflink=always"),
    Rsync("rsync", "rsync", "-a", "--inplace"),
    CopyTool("copytree", sys.executable, "-c", _COPYTREE),
    CowfsTool("cowfs-import", "import"),
    CowfsTool("cowfs-clone", "clone"),
)
