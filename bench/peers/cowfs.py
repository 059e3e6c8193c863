"""cowfs itself, driven through its command line."""

# ruff: noqa: ARG002 - every peer has the parameters of Peer, whether it needs them or not

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.environment import Environment
from bench.system import BenchError, is_mountpoint, patient_teardown, run, unmount

from .base import Peer, View


class Cowfs(Peer):
    """An ephemeral copy, with further mount options."""

    def __init__(self, name: str, options: str, *, is_fuse: bool = True) -> None:
        self.name = name
        self._options = options
        self._is_fuse = is_fuse

    def missing(self, env: Environment) -> str | None:
        found = shutil.which(env.cowfs[0])
        return None if found else f"no command {env.cowfs[0]} (name one with --cowfs)"

    def mount(self, env: Environment, source: Path, mountpoint: Path, *more: str) -> None:
        """Mount; returns when the mount answers, as the command promises."""
        options = ",".join(option for option in ("ephemeral", self._options, *more) if option)
        run([*env.cowfs, "mount", "-o", options, source, mountpoint], timeout=120)

    def unmount(self, env: Environment, mountpoint: Path) -> None:
        """Unmount as a user does; a mount that does not answer is detached."""
        if is_mountpoint(mountpoint):
            try:
                run([*env.cowfs, "umount", mountpoint], timeout=60)
            except BenchError:
                unmount(mountpoint)
                raise

    @contextmanager
    def mounted(self, env: Environment, source: Path, *, private: bool = False) -> Iterator[View]:
        mountpoint = env.mountpoint(self.name)
        try:
            self.mount(env, source, mountpoint)
            yield View(mountpoint, lambda: _daemons(env, mountpoint), is_fuse=self._is_fuse)
        finally:
            with patient_teardown():
                self.unmount(env, mountpoint)
                mountpoint.rmdir()


def _daemons(env: Environment, mountpoint: Path) -> list[int]:
    for copy in json.loads(run([*env.cowfs, "list", "--json"])):
        if copy["mountpoint"] == str(mountpoint):
            pids = [copy["daemon_pid"], copy["keeper_pid"]]
            return list({pid for pid in pids if pid is not None})
    raise BenchError(f"cowfs list does not know {mountpoint}")
