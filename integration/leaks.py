"""What a test, or the whole run, has left behind on the machine: found, named and taken away."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from integration import kernel
from integration.mounts import force_unmount


class Leaks:
    """Compares the mounts, loop devices and processes of the session with those at its making."""

    def __init__(self) -> None:
        self._mounts = set(kernel.session_mounts())
        self._loops = set(kernel.session_loops())
        self._processes = set(kernel.session_processes())

    def take_away(self, patience: float = 3) -> list[str]:
        """Remove what is there too much and return a line about each.

        Processes get `patience` seconds to end by themselves, loop devices to be released by the
        kernel.
        """
        complaints = []
        for mount in reversed(kernel.session_mounts()):
            if mount not in self._mounts:
                complaints.append(f"left mounted: {mount.mountpoint} ({mount.fstype})")
                force_unmount(mount)
        deadline = time.monotonic() + patience
        while (processes := self._new_processes()) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid, command in processes.items():
            complaints.append(f"left running: {pid} {command}")
            os.kill(pid, signal.SIGKILL)
            kernel.wait_for_end(pid, 5)
        while (loops := self._new_loops()) and time.monotonic() < deadline:
            time.sleep(0.02)
        for line in loops:
            complaints.append(f"left attached: {line}")
            subprocess.run(["losetup", "--detach", line.partition(" ")[0]])
        return complaints

    def _new_processes(self) -> dict[int, str]:
        found = kernel.session_processes()
        return {pid: command for pid, command in found.items() if pid not in self._processes}

    def _new_loops(self) -> list[str]:
        return [line for line in kernel.session_loops() if line not in self._loops]
