"""What a machine runs as its first process: does the checks in groups, and reports.

Each group is a process of its own. One that hangs is named, with what the kernel knows of the
waiting processes, and taken away.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from integration import kernel

#: What this run brings: code, packages, and plan.json.
PAYLOAD = Path("/mnt")
#: An XFS volume.
VOLUME = Path("/data")
#: What a check may take, on a host that has other things to do: everything is ten to thirty times
#: slower than on a real machine.
SECONDS = 1200.0
# For how long the machine may have nothing to do meanwhile, as it is when something hangs. A host
# that is busy lets it wait, but does not make it idle.
_IDLE_SECONDS = 60.0

Step = tuple[str, Callable[[], object]]

_REPORT = "/dev/ttyS1"
_POWER_OFF = 0x4321FEDC  # <linux/reboot.h>


def report(event: str, **details: Any) -> None:
    """Tell the host."""
    with open(_REPORT, "w") as file:
        file.write(json.dumps({"event": event, **details}) + "\n")


def main() -> None:
    """The first process is everybody's last parent."""
    child = os.fork()
    if child == 0:
        try:
            _work()
        except BaseException:
            report("broken", why=traceback.format_exc())
        os._exit(0)
    while os.wait()[0] != child:
        pass
    report("done")
    os.sync()
    ctypes.CDLL(None).reboot(_POWER_OFF)


def _work() -> None:
    for kind, place in (
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("fusectl", str(kernel.CONNECTIONS)),
        ("tmpfs", "/run"),
        ("tmpfs", "/dev/shm"),
    ):
        Path(place).mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", kind, kind, place], check=True)
    VOLUME.mkdir()
    subprocess.run(["mount", "/dev/vdb", VOLUME], check=True)
    plan = json.loads((PAYLOAD / "plan.json").read_text())
    report("kernel", release=os.uname().release)
    from integration.kernels.checks import groups

    for name, steps in groups(PAYLOAD / plan["update"], plan["ways"], plan["cases"]):
        # The others work with what `model` makes.
        if not plan["groups"] or name.partition(",")[0] in ("model", *plan["groups"]):
            _do(name, steps)


def _do(name: str, steps: Callable[[], Iterator[Step]]) -> None:
    """A group. When its first step fails the others are not begun."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        _perform(name, steps, writing)
    os.close(writing)
    began, idleness = time.monotonic(), _Idleness()
    step = f"{name}: begin"
    with os.fdopen(reading, "rb", buffering=0) as events:
        waiting = b""
        while True:
            if not select.select([events], [], [], 1)[0]:
                took = time.monotonic() - began
                if took > SECONDS or idleness.seconds() > _IDLE_SECONDS:
                    report("end", check=step, seconds=took, why=f"hangs:\n{_who_waits()}")
                    break
                continue
            piece = events.read(1 << 16)
            if not piece:
                break
            *lines, waiting = (waiting + piece).split(b"\n")
            for line in lines:
                event = json.loads(line)
                if event["event"] == "begin":
                    began, idleness, step = time.monotonic(), _Idleness(), event["check"]
                report(**event)
    left_behind = [mount.mountpoint for mount in _copies()]
    left_behind += list(_servers().values())
    _free(child)
    if left_behind:
        report("end", check=f"{name}: nothing is left", seconds=0, why="\n".join(left_behind))


def _perform(name: str, steps: Callable[[], Iterator[Step]], events: int) -> None:
    def tell(event: str, **details: Any) -> None:
        os.write(events, json.dumps({"event": event, **details}).encode() + b"\n")

    first = True
    try:
        for step, act in steps():
            check = f"{name}: {step}" if step else name
            tell("begin", check=check)
            began = time.monotonic()
            why = None
            try:
                act()
            except AssertionError as error:
                why = f"{error}\n{_where(error)}"
            except BaseException:
                why = traceback.format_exc()
            tell("end", check=check, seconds=time.monotonic() - began, why=why)
            if first and why is not None:
                break
            first = False
    except BrokenPipeError:
        pass  # it was given up
    except BaseException:
        tell("end", check=f"{name}: end", seconds=0, why=traceback.format_exc())
    finally:
        os._exit(0)


class _Idleness:
    """How long the processors have had nothing to do without a break."""

    def __init__(self) -> None:
        self._looked, self._idle = time.monotonic(), _idle()
        self._since = self._looked

    def seconds(self) -> float:
        """To be asked every second or so. A tenth of the time may go to whoever looks around."""
        now, idle = time.monotonic(), _idle()
        if idle - self._idle < 0.9 * (now - self._looked):
            self._since = now
        self._looked, self._idle = now, idle
        return now - self._since


def _idle() -> float:
    """Seconds that the processors had nothing to do, on average: proc_stat(5)."""
    fields = Path("/proc/stat").read_text().split("\n")[0].split()
    return int(fields[4]) / os.sysconf("SC_CLK_TCK") / (os.cpu_count() or 1)


def _where(error: BaseException) -> str:
    return "".join(traceback.format_tb(error.__traceback__)[-2:])


def _copies() -> list[kernel.Mount]:
    return [mount for mount in kernel.mounts() if mount.mountpoint.startswith("/copies/")]


def _servers() -> dict[int, str]:
    """Keepers and daemons. They end a moment after their mount."""
    deadline = time.monotonic() + 120
    while True:
        found = {pid: words for pid, words in _processes() if words.startswith("/usr/lib/cowfs/")}
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def _processes() -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) > 1:
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                if words:
                    yield int(entry.name), words


def _who_waits() -> str:
    """Where every thread of every process is in the kernel."""
    told = []
    for pid, words in _processes():
        told.append(f"{pid} {words[:150]}")
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                stack = (thread / "stack").read_text().split("\n")
                state = (thread / "stat").read_text().rpartition(")")[2].split()[0]
                calls = " < ".join(
                    line.partition("] ")[2].partition("+")[0] for line in stack if line
                )
                told.append(f"   {thread.name} {state} {calls}")
    return "\n".join(told)


def _free(child: int) -> None:
    """Take away what a group has left, and the group."""
    for connection in kernel.CONNECTIONS.iterdir():
        with suppress(OSError):
            (connection / "abort").write_text("1")
    for pid in (
        child,
        *(pid for pid, words in _processes() if words.startswith("/usr/lib/cowfs/")),
    ):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for mount in reversed(_copies()):  # now that nobody makes another one
        subprocess.run(["umount", "-i", "-l", mount.mountpoint], check=False, capture_output=True)


if __name__ == "__main__":
    main()
