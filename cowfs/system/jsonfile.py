"""Small JSON files that are whole or not there.

Knows how to write one so that neither a crash nor a reader sees half of it. What is in them, their
readers know. Paths go in as `os.fsdecode` gives them: bytes that are no UTF-8 become lone
surrogates, which JSON writes as escapes and reads back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any


def write(dir_fd: int, name: str, value: Mapping[str, Any]) -> None:
    """Replace the file `name` of a directory, mode 0600; on return it is on disk. OSError."""
    temporary = f".{name}.{os.urandom(4).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=dir_fd)
    try:
        with open(fd, "w", encoding="ascii") as stream:
            json.dump(value, stream, indent=1)
            stream.write("\n")
            stream.flush()
            os.fsync(fd)
        os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        os.unlink(temporary, dir_fd=dir_fd)
        raise


def read(dir_fd: int, name: str) -> dict[str, Any]:
    """The object in the file. OSError; ValueError when it is not the JSON of an object."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    with open(fd, encoding="utf-8") as stream:
        value = json.load(stream)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value
