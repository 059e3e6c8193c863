"""What the threads of a process do: proc_pid_stat(5), proc_pid_stack(5)."""

from __future__ import annotations

import os


def stacks(pid: int) -> list[tuple[str, str, list[str]]]:
    """Number, state and kernel stack of each thread."""
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            try:
                with open(f"/proc/{pid}/task/{task}/stack") as stack:
                    frames = [line.split("] ")[-1].split("+")[0] for line in stack]
            except OSError:
                frames = []
            found.append((task, state(f"{pid}/task/{task}"), frames))
    except OSError:
        pass
    return found


def cannot_end(pid: int) -> bool:
    """Whether a daemon was killed, and only threads are left of it that wait for a FUSE mount.

    SIGKILL does not end these: they wait for our own mount, and so for the next daemon.  A thread
    that is about to change the volume is another matter: it must be done before the next daemon
    looks.  The kernel notifies nobody when only the first thread of a process has ended (not even
    through PIDFD_THREAD since Linux 6.15).
    """
    if state(pid) != "Z":
        return False
    others = [frames for _, letter, frames in stacks(pid) if letter not in "ZX"]
    return bool(others) and all(any("fuse_" in frame for frame in frames) for frames in others)


def state(process: str | int) -> str:
    """Of the first thread of a process, or of another; empty when it is gone."""
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
