"""Other FUSE filesystems: fuse-overlayfs, libfuse's passthrough_hp, a plain pyfuse3 loopback."""

# ruff: noqa: ARG002 - every peer has the parameters of Peer, whether it needs them or not

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.environment import Environment
from bench.system import patient_teardown

from .base import Peer, View, served
from .kernel import layers


class FuseOverlayfs(Peer):
    """The overlay in user space that rootless containers use, as its package is built."""

    name = "fuse-overlayfs"

    def missing(self, env: Environment) -> str | None:
        return None if shutil.which(self.name) else "not installed (Debian: fuse-overlayfs)"

    @contextmanager
    def mounted(self, env: Environment, source: Path, *, private: bool = False) -> Iterator[View]:
        folder, mountpoint = env.folder(self.name), env.mountpoint(self.name)
        command: list[str | Path] = [self.name, "-f", "-o", layers(folder, source), mountpoint]
        try:
            with served(command, mountpoint, folder / "log") as daemon:
                yield View(mountpoint, lambda: [daemon.pid], is_fuse=True)
        finally:
            with patient_teardown():
                mountpoint.rmdir()
                shutil.rmtree(folder)


class _Loopback(Peer):
    """A filesystem that shows a directory as it is; a private view lies above a reflink copy."""

    def command(self, source: Path, mountpoint: Path) -> list[str | Path]:
        raise NotImplementedError

    @contextmanager
    def mounted(self, env: Environment, source: Path, *, private: bool = False) -> Iterator[View]:
        folder, mountpoint = env.folder(self.name), env.mountpoint(self.name)
        try:
            if private:
                env.clone_tree(source, folder / "tree")
                source = folder / "tree"
            with served(self.command(source, mountpoint), mountpoint, folder / "log") as daemon:
                yield View(mountpoint, lambda: [daemon.pid], is_fuse=True)
        finally:
            with patient_teardown():
                mountpoint.rmdir()
                shutil.rmtree(folder)


class Pyfuse3(_Loopback):
    """Stock pyfuse3 of the interpreter that runs the benchmark, see loopback.py."""

    name = "pyfuse3"

    def missing(self, env: Environment) -> str | None:
        found = importlib.util.find_spec("pyfuse3")
        return None if found else f"pyfuse3 is not installed for {sys.executable}"

    def command(self, source: Path, mountpoint: Path) -> list[str | Path]:
        return [sys.executable, "-m", "bench.loopback", source, mountpoint]


class PassthroughHp(_Loopback):
    """libfuse's example passthrough_hp, where someone has built it."""

    name = "passthrough_hp"

    def missing(self, env: Environment) -> str | None:
        return None if shutil.which(self.name) else "not installed (an example in libfuse's source)"

    def command(self, source: Path, mountpoint: Path) -> list[str | Path]:
        return [self.name, "--foreground", source, mountpoint]
