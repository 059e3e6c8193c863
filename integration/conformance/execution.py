"""execve(2), mappings that execute, and ETXTBSY."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import time

from integration.conformance import calls
from integration.conformance.cases import case, equal, fails, get, outcome, put
from integration.conformance.furniture import furnish, furnish_for_users
from integration.conformance.processes import BOB, act_as


def _programs() -> None:
    furnish()
    put("script", b"#!/bin/sh\necho script $1\n")
    for name, source in (("echo", "/bin/echo"), ("sleep", "/bin/sleep")):
        shutil.copyfile(source, name)
        os.chmod(name, 0o755)
    put("large", get("/bin/echo") + bytes(100_000))
    for name in ("script", "large"):
        os.chmod(name, 0o755)


def _run(*words: str) -> bytes:
    return subprocess.run(words, capture_output=True, check=True).stdout


@case(prepare=_programs)
def scripts_and_programs_run() -> list[bytes]:
    os.link("echo", "dir/echo")
    os.symlink("large", "tolarge")
    seen = [
        _run("./script", "one"),
        _run("./echo", "two"),
        _run("dir/echo", "three"),
        _run("./tolarge", "four"),
    ]
    equal(seen, [b"script one\n", b"two\n", b"three\n", b"four\n"])
    return seen


@case(prepare=furnish_for_users)
def execution_needs_the_bit() -> None:
    put("script", b"#!/bin/sh\n")
    fails("EACCES", _run, "./script")
    fails("EACCES", _run, "./dir")
    fails("EACCES", _run, "./fifo")
    os.chmod("script", 0o700)
    _run("./script")
    fails("EACCES", act_as, BOB, _run, "./script")
    put("garbage", b"\x00\x01\x02")
    os.chmod("garbage", 0o755)
    fails("ENOEXEC", _run, "./garbage")
    put("noshell", b"#!/no/such/interpreter\n")
    os.chmod("noshell", 0o755)
    fails("ENOENT", _run, "./noshell")


@case(prepare=_programs)
def program_that_is_open_for_writing_does_not_run() -> None:
    for name in ("./echo", "./large", "./script"):
        fd = os.open(name, os.O_WRONLY)
        fails("ETXTBSY", _run, name)
        os.close(fd)
        _run(name)
        fd = os.open(name, os.O_RDONLY)
        _run(name)
        os.close(fd)


@case(prepare=_programs)
def program_that_runs_is_not_written() -> object:
    def started() -> bool:
        return os.readlink(f"/proc/{child.pid}/exe").endswith("/sleep")

    with subprocess.Popen(["./sleep", "30"]) as child:
        try:
            while not started():
                time.sleep(0.001)
            fails("ETXTBSY", os.open, "sleep", os.O_WRONLY)
            fails("ETXTBSY", os.open, "sleep", os.O_RDWR | os.O_TRUNC)
            seen = [outcome(os.truncate, "sleep", 0)]
            equal(seen, ["ETXTBSY"])
            os.unlink("sleep")
            put("sleep", b"another one")
        finally:
            child.kill()
    return [*seen, get("sleep")]


@case(prepare=_programs)
def mappings_may_execute() -> None:
    for name in ("echo", "large", "file", "big"):
        fd = os.open(name, os.O_RDONLY)
        calls.mmap(fd, 10, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE)
        calls.mmap(fd, 10, mmap.PROT_READ, mmap.MAP_SHARED)
        shared = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED
        fails("EACCES", calls.mmap, fd, 10, *shared)
        calls.mmap(fd, 10, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE)
        fails("EINVAL", calls.mmap, fd, 0, mmap.PROT_READ, mmap.MAP_SHARED)
        os.close(fd)
        fd = os.open(name, os.O_WRONLY)
        fails("EACCES", calls.mmap, fd, 10, mmap.PROT_READ, mmap.MAP_SHARED)
        os.close(fd)
