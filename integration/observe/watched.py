"""A program to be watched: one thread reads a file by pread(2), one maps another, and a second
process writes.

    python watched.py READ MAPPED WRITTEN

It says in one line of JSON which thread did what, begins with that when it reads a line, says so,
and ends with its input.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import sys
import threading
from typing import Any

BLOCK = 64 * 1024
MIB = 1 << 20


def faults() -> int:
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return usage.ru_minflt + usage.ru_majflt


def read(path: str, said: dict[str, Any], begin: threading.Event) -> None:
    fd = os.open(path, os.O_RDONLY)
    said["reader"] = {"tid": threading.get_native_id()}
    begin.wait()
    at = calls = 0
    while True:
        data = os.pread(fd, BLOCK, at)
        if not data:
            break
        calls += 1
        at += len(data)
    os.close(fd)
    said["reader"] |= {"bytes": at, "calls": calls}


def touch(path: str, said: dict[str, Any], begin: threading.Event) -> None:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        mapping = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
    said["mapper"] = {"tid": threading.get_native_id()}
    begin.wait()
    before = faults()
    for at in range(0, size, mmap.PAGESIZE):
        mapping[at]
    said["mapper"] |= {"bytes": size, "faults": faults() - before}
    mapping.close()


def write(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for _ in range(3 * MIB // BLOCK):
        os.write(fd, b"x" * BLOCK)
    os.close(fd)


def main() -> None:
    to_read, to_map, to_write = sys.argv[1:]
    waiting, waking = os.pipe()
    writer = os.fork()
    if not writer:
        os.close(waking)
        os.read(waiting, 1)
        write(to_write)
        os._exit(0)
    os.close(waiting)
    said: dict[str, Any] = {"pid": os.getpid(), "writer": {"pid": writer, "bytes": 3 * MIB}}
    begin = threading.Event()
    threads = [
        threading.Thread(target=read, args=(to_read, said, begin)),
        threading.Thread(target=touch, args=(to_map, said, begin)),
    ]
    for thread in threads:
        thread.start()
    sys.stdin.readline()
    os.write(waking, b"x")
    begin.set()
    for thread in threads:
        thread.join()
    os.waitpid(writer, 0)
    print(json.dumps(said), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
