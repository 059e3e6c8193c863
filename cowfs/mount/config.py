"""What a daemon is told about the mount that it is to serve."""

from __future__ import annotations

import json
from dataclasses import dataclass

from cowfs.mount.options import Options


@dataclass(frozen=True)
class Config:
    """One mount. Paths are absolute; bytes that are not UTF-8 are surrogate-escaped (os.fsdecode).

    copy: name of the copy within the store.
    foreground: only those who see standard error wait for the mount.
    fresh: the copy was made for this mount, and goes if the mount fails.
    lock_fd: the open file description that holds the copy's flock; the owner of the Config owns it.
    """

    source: str
    mountpoint: str
    store: str
    copy: str
    lock_fd: int
    options: Options
    foreground: bool = False
    fresh: bool = False

    def to_json(self) -> bytes:
        """Everything but lock_fd, whose number means nothing to another process, and the engine:
        a daemon reads it, which is FUSE's, and perhaps of a version that knows no other engine."""
        options = self.options.to_dict()
        del options["engine"]
        return json.dumps(
            {
                "source": self.source,
                "mountpoint": self.mountpoint,
                "store": self.store,
                "copy": self.copy,
                "options": options,
                "foreground": self.foreground,
                "fresh": self.fresh,
            }
        ).encode("ascii")  # json escapes lone surrogates, so odd file names survive

    @classmethod
    def from_json(cls, data: bytes, lock_fd: int) -> Config:
        """Raises ValueError, KeyError or TypeError when this is not what to_json() made."""
        values = json.loads(data)
        return cls(
            source=values["source"],
            mountpoint=values["mountpoint"],
            store=values["store"],
            copy=values["copy"],
            lock_fd=lock_fd,
            options=Options.from_dict(values["options"]),
            foreground=values["foreground"],
            fresh=values["fresh"],
        )
