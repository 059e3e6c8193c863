"""What is written down of each volume, and whose turn it is with one.

    <state>/volumes/<key>.json    the record: made before anything is mounted, gone after everything
    <state>/turns/<key>           locked (flock) by whoever makes a step with the volume
    <state>/mounts/<key>/         where its copy is mounted

A volume's id is any text that a client likes; its key is a hash of that, so that no id becomes a
path. A record is replaced as a whole and is on disk before the next step (jsonfile). So at any kill
the record says at least what there may be, and the same call again, or `reconcile.py`, goes on.

The lock of a turn belongs to an open file, and the process that mounts has that too. When this
process is killed while one mounts, nobody else has a turn with the volume until that one has ended.
Nobody waits for a turn: who finds it taken is told to ask again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from grpc import StatusCode

from cowfs.csi.calls import Refused, again
from cowfs.system import directories, jsonfile, syscalls

log = logging.getLogger(__name__)

FORMAT = 1
_SUFFIX = ".json"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Target:
    """Where a volume is bound. staged: for the node, not for a pod. leaving: it is being unbound.

    mode: the access mode that was asked for. flags: mount options of this place.
    """

    staged: bool
    read_only: bool
    mode: str
    flags: tuple[str, ...] = ()
    leaving: bool = False

    def is_as(self, other: Target) -> bool:
        """Whether both were asked for in the same way."""
        return replace(self, leaving=False) == replace(other, leaving=False)


@dataclass(frozen=True)
class Volume:
    """A volume. source: its name; path: where that was. store, copy: where what is written goes.

    inline: it belongs to one pod, and goes with it. name, capacity: as CreateVolume was told.
    whole: CreateVolume has answered. ending: it is being put away, and nobody gets it any more.
    """

    id: str
    source: str
    path: str
    store: str
    copy: str
    inline: bool
    read_only: bool = False
    name: str = ""
    capacity: int = 0
    whole: bool = True
    ending: bool = False
    targets: dict[str, Target] = field(default_factory=dict)

    def with_target(self, path: str, target: Target | None) -> Volume:
        """The same with this target, or without one there."""
        others = {place: one for place, one in self.targets.items() if place != path}
        return replace(self, targets=others if target is None else {**others, path: target})

    @classmethod
    def from_fields(cls, value: dict[str, Any]) -> Volume:
        """From what asdict() gave. TypeError, KeyError, ValueError."""
        if value["format"] != FORMAT:
            raise ValueError(f"its format is {value['format']}, this cowfs reads {FORMAT}")
        known = {one.name: value[one.name] for one in fields(cls) if one.name in value}
        known["targets"] = {
            path: Target(**{**target, "flags": tuple(target["flags"])})
            for path, target in known["targets"].items()
        }
        return cls(**known)


def key_of(volume_id: str) -> str:
    """What a volume's files are called."""
    return hashlib.sha256(volume_id.encode(errors="surrogatepass")).hexdigest()[:32]


class Turn:
    """A step with one volume: nobody else has one meanwhile, in whichever process."""

    def __init__(self, records: Records, key: str, lock_fd: int) -> None:
        self._records = records
        self.key = key
        self.lock_fd = lock_fd

    def read(self) -> Volume | None:
        """The volume's record. Refused: it is damaged."""
        return self._records.read(self.key)

    def write(self, volume: Volume) -> None:
        """On return it is on disk. OSError."""
        value = {"format": FORMAT, **asdict(volume)}
        jsonfile.write(self._records.volumes_fd, self.key + _SUFFIX, value)
        syscalls.fsync_directory(self._records.volumes_fd)

    def forget(self) -> None:
        """The volume is no more. OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.key + _SUFFIX, dir_fd=self._records.volumes_fd)
        syscalls.fsync_directory(self._records.volumes_fd)


class Records:
    """The state directory. Nobody else has it as long as this object lives."""

    def __init__(self, state: str) -> None:
        """Make what is missing. BlockingIOError: another driver has it. OSError."""
        os.makedirs(state, 0o700, exist_ok=True)
        state = os.path.realpath(state)
        self._lock = os.open(state, _DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(self._lock, 0o700)
        self.volumes_fd = _part(self._lock, "volumes")
        self._turns_fd = _part(self._lock, "turns")
        self.mounts_fd = _part(self._lock, "mounts")
        self._mounts = os.path.join(state, "mounts")

    def mountpoint(self, key: str) -> str:
        """Where the copy of a volume is mounted, or would be."""
        return os.path.join(self._mounts, key)

    @contextlib.contextmanager
    def turn(self, key: str) -> Iterator[Turn]:
        """A step with a volume. Refused: somebody else makes one."""
        fd = self._locked(key)
        if fd is None:
            raise again("another call for this volume is still under way: try again")
        try:
            yield Turn(self, key, fd)
        finally:
            # With the lock of a volume that is no more goes its file.
            if not self._exists(key):
                with contextlib.suppress(OSError):
                    os.unlink(key, dir_fd=self._turns_fd)
            os.close(fd)

    def read(self, key: str) -> Volume | None:
        """A record as it is now. Refused: it is damaged."""
        try:
            return Volume.from_fields(jsonfile.read(self.volumes_fd, key + _SUFFIX))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(
                StatusCode.INTERNAL,
                f"the driver's record {key} on this node is damaged, and left alone: {error}",
            ) from None

    def known(self) -> list[str]:
        """The keys of all records, whole or not."""
        names = directories.names(self.volumes_fd)
        return sorted(name[: -len(_SUFFIX)] for name in names if _is_record(name))

    def all(self) -> Iterator[tuple[str, Volume]]:
        """All records; one that is damaged is left out, and logged."""
        for key in self.known():
            try:
                volume = self.read(key)
            except Refused as error:
                log.error("%s", error)
                continue
            if volume is not None:
                yield key, volume

    def _exists(self, key: str) -> bool:
        try:
            os.stat(key + _SUFFIX, dir_fd=self.volumes_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _locked(self, key: str) -> int | None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            fd = os.open(key, flags, 0o600, dir_fd=self._turns_fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Whoever had it before may have taken the file away.
                there = os.stat(key, dir_fd=self._turns_fd, follow_symlinks=False)
                if os.path.samestat(os.fstat(fd), there):
                    return fd
            except BlockingIOError:
                os.close(fd)
                return None
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)


def _is_record(name: str) -> bool:
    # What a kill has left half written begins with a dot, and is nothing.
    return name.endswith(_SUFFIX) and not name.startswith(".")


def _part(dir_fd: int, name: str) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=dir_fd)
    return os.open(name, _DIRECTORY, dir_fd=dir_fd)
