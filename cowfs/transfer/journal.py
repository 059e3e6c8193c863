"""What an unfinished import has done already, kept beside what it has made.

`state.json` says what is imported. `journal` has a JSON object on each line: `files`, whose data
and attributes are there; `region`, a part of a large file; `again`, a file that is not right;
`boot`, the id of the boot that wrote the lines below; `synced`, after syncfs(2). What was not
synced before the machine went down may be missing on disk, so such lines do not count.

A file is named together with its record, as a scan makes it: one that was changed since is not
done. Paths are relative to the source, as os.fsdecode gives them; what stands for one that is too
long says `scan.key_below`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

from cowfs.system import jsonfile, remedy
from cowfs.system.errors import CowfsError

_STATE = "state.json"
_JOURNAL = "journal"
_FORMAT = 1
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class Journal:
    """The journal in a hidden directory whose descriptor stays the caller's."""

    def __init__(self, source: str, region: int) -> None:
        """Use `create` or `read`."""
        self.source = source
        self.region = region  # bytes
        self.files: dict[str, bytes] = {}  # path to record
        self.regions: dict[str, tuple[bytes, set[int]]] = {}  # record, first bytes
        self._added = False
        self._fd = -1

    @property
    def holds_anything(self) -> bool:
        """Whether anything is done that would be lost."""
        return bool(self._added or self.files or self.regions)

    @classmethod
    def create(cls, dir_fd: int, source: str, region: int) -> Journal:
        """Begin one. OSError."""
        journal = cls(source, region)
        jsonfile.write(dir_fd, _STATE, {"format": _FORMAT, "source": source, "region": region})
        journal._open(dir_fd)
        return journal

    @classmethod
    def read(cls, dir_fd: int, path: str) -> Journal | None:
        """The one that is there, None when there is none. CowfsError when it is damaged; OSError.

        `path` names the directory in a message.
        """
        try:
            state = jsonfile.read(dir_fd, _STATE)
            if state["format"] != _FORMAT:
                raise ValueError
            journal = cls(str(state["source"]), int(state["region"]))
            journal._replay(dir_fd)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise CowfsError(
                f"the state of an import in {path} is damaged, or of another version of cowfs: "
                f"begin again after: {remedy.command('rm -rf', path)}"
            ) from None
        journal._open(dir_fd)
        return journal

    def close(self) -> None:
        """Stop writing."""
        os.close(self._fd)

    def add_files(self, records: Iterable[tuple[str, bytes]]) -> None:
        """These are done."""
        self._added = True
        self._write({"files": [[path, record.hex()] for path, record in records]})

    def add_region(self, path: str, record: bytes, start: int) -> None:
        """The region of a large file that begins with this byte is there."""
        self._added = True
        self._write({"region": [path, record.hex(), start]})

    def add_again(self, path: str) -> None:
        """This file has to be copied again."""
        self._write({"again": path})

    def add_synced(self) -> None:
        """All that was added up to now is on disk, and so is this. OSError."""
        self._write({"synced": True})
        os.fsync(self._fd)

    def _open(self, dir_fd: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(_JOURNAL, flags, 0o600, dir_fd=dir_fd)
        if os.fstat(self._fd).st_size:
            os.write(self._fd, b"\n")  # after a line that was cut short
        self._write({"boot": _boot_id()})

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._fd, json.dumps(line).encode("ascii") + b"\n")

    def _replay(self, dir_fd: int) -> None:
        try:
            fd = os.open(_JOURNAL, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        except FileNotFoundError:
            return
        pending: list[dict[str, Any]] = []
        boot = None
        with open(fd, "rb") as lines:
            for text in lines:
                try:
                    line = json.loads(text)
                except ValueError:  # empty, or cut short when the writer was killed
                    continue
                if "boot" in line:
                    if line["boot"] != boot:
                        pending.clear()
                    boot = line["boot"]
                elif "synced" in line:
                    self._take(pending)
                    pending.clear()
                else:
                    pending.append(line)
        if boot == _boot_id():
            self._take(pending)

    def _take(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            for path, record in line.get("files", ()):
                self.files[path] = bytes.fromhex(record)
            if "region" in line:
                path, text, start = line["region"]
                record = bytes.fromhex(text)
                known = self.regions.get(path)
                if known is None or known[0] != record:
                    known = self.regions[path] = (record, set())
                known[1].add(int(start))
            if "again" in line:
                self.files.pop(line["again"], None)
                self.regions.pop(line["again"], None)


def _boot_id() -> str:
    with open(_BOOT_ID, encoding="ascii") as file:
        return file.read().strip()
