"""Runs the installed `cowfs` command, as a user does. Knows nothing about what the command does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from integration import kernel

#: The command of the environment that runs the tests, not of the tree that they were started in.
COWFS = Path(sys.executable).with_name("cowfs")


class Result(NamedTuple):
    """How a command ended. Bytes of its output that are not UTF-8 are surrogates (PEP 383)."""

    returncode: int
    stdout: str
    stderr: str


def cowfs(
    *args: str | os.PathLike[str],
    check: bool = True,
    timeout: float = 60,
    env: dict[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
) -> Result:
    """Run `cowfs ARGS...` and return its exit code and output.

    With `check` an exit code other than 0 fails the test. `env` adds to the environment. A command
    that is not done after `timeout` seconds, or whose output is still held open by a process that
    it left behind, fails the test.
    """
    return run(str(COWFS), *args, check=check, timeout=timeout, env=env, cwd=cwd)


def run(
    *args: str | os.PathLike[str],
    check: bool = True,
    timeout: float = 60,
    env: dict[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
) -> Result:
    """The same for any program."""
    process = subprocess.Popen(
        [os.fspath(arg) for arg in args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        env={**os.environ, **(env or {})},
        cwd=cwd,
        start_new_session=True,
    )
    shown = " ".join(os.fspath(arg) for arg in args)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as expired:
        _kill(process)
        how = (
            "did not end"
            if process.returncode == -signal.SIGKILL
            else f"ended with {process.returncode}, but something keeps its output open"
        )
        raise AssertionError(
            f"`{shown}` {how}, waited {timeout:g} s\n"
            f"stdout: {expired.stdout!r}\nstderr: {expired.stderr!r}"
        ) from None
    except BaseException:  # the test's own time is over: leave no process behind
        _kill(process)
        raise
    if check and process.returncode != 0:
        raise AssertionError(
            f"`{shown}` ended with {process.returncode}\nstdout: {stdout}\nstderr: {stderr}"
        )
    return Result(process.returncode, stdout, stderr)


def _kill(process: subprocess.Popen[str]) -> None:
    """End the process, also one that waits for a mount that does not answer; stop listening."""
    process.kill()
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        # A request that the daemon has read is waited for without regard to signals: free the
        # waiter.
        kernel.abort_connections()
        process.wait(timeout=10)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def one_error(result: Result) -> str:
    """The only line of a command that failed as it should."""
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("cowfs: ")
    return line
