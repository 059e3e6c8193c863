"""Peers without a daemon: XFS itself, a reflink copy on it, kernel overlayfs."""

# ruff: noqa: ARG002 - every peer has the parameters of Peer, whether it needs them or not

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.environment import Environment
from bench.system import patient_teardown, run, unmount

from .base import Peer, View


class Native(Peer):
    """The source itself; a private view is a full copy."""

    name = "native"

    @contextmanager
    def mounted(self, env: Environment, source: Path, *, private: bool = False) -> Iterator[View]:
        if not private:
            yield View(source)
            return
        folder = env.folder(self.name)
        try:
            run(["cp", "-a", "--reflink=never", source, folder / "tree"])
            yield View(folder / "tree")
        finally:
            with patient_teardown():
                shutil.rmtree(folder)


class Reflink(Peer):
    """`cp -a --reflink=always`: instant too, but every copy has pages of its own."""

    name = "reflink"

    @contextmanager
    def mounted(self, env: Environment, source: Path, *, private: bool = False) -> Iterator[View]:
        folder = env.folder(self.name)
        try:
            env.clone_tree(source, folder / "tree")
            yield View(folder / "tree")
        finally:
            with patient_teardown():
                shutil.rmtree(folder)


class Overlayfs(Peer):
    """The kernel's overlayfs with its upper directory on the same volume."""

    name = "overlayfs"

    def missing(self, env: Environment) -> str | None:
        known = Path("/proc/filesystems").read_text().split()
        return None if "overlay" in known else "this kernel has no overlayfs"

    @contextmanager
    def mounted(self, env: Environment, source: Path, *, private: bool = False) -> Iterator[View]:
        folder, mountpoint = env.folder(self.name), env.mountpoint(self.name)
        try:
            run(["mount", "-t", "overlay", "overlay", "-o", layers(folder, source), mountpoint])
            yield View(mountpoint)
        finally:
            with patient_teardown():
                unmount(mountpoint)
                mountpoint.rmdir()
                shutil.rmtree(folder)


def layers(folder: Path, source: Path) -> str:
    """The mount options that put an upper and a work directory in `folder` above `source`."""
    for name in ("upper", "work"):
        (folder / name).mkdir()
    return f"lowerdir={source},upperdir={folder / 'upper'},workdir={folder / 'work'}"
