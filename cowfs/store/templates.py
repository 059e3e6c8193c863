"""Finished templates: what is written beside a sealed tree, and how it is read back.

    <store>/templates/<id>/tree/           the sealed snapshot
    <store>/templates/<id>/manifest.json   what this file knows about it

The id is a hash of the canonical source path and the fingerprint of what was in it, so an
unchanged source has its template under a name that can be worked out.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from typing import Any

from cowfs.store.directory import StoreDirectory
from cowfs.system import jsonfile
from cowfs.system.errors import MountFailure
from cowfs.trees.links import POLICIES, Policy

FORMAT = 1
MANIFEST = "manifest.json"
TREE = "tree"

_ID_BYTES = 16


Links = list[list[bytes]]


@dataclass(frozen=True)
class Template:
    """A sealed snapshot of a source. Paths are as `os.fsdecode` gives them.

    hard_links: for each file with several names in the tree all of them, relative to the tree.
    created: seconds since the epoch. bytes: st_size of the regular files, each counted once.
    links: what was done with links out of the source; versions that did not say so kept them.
    """

    id: str
    path: str
    source: str
    created: float
    entries: int
    bytes: int
    hard_links: Links
    links: Policy = "keep"

    @property
    def tree(self) -> str:
        """The path of the sealed tree."""
        return os.path.join(self.path, TREE)


def id_of(source: str, digest: bytes) -> str:
    """The id of the template for a canonical source path and the fingerprint of its tree."""
    path = os.fsencode(source)
    return hashlib.blake2b(path + b"\0" + digest, digest_size=_ID_BYTES).hexdigest()


def write(dir_fd: int, template: Template) -> None:
    """Write the manifest into the directory that is to be the template. OSError."""
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "id": template.id,
        "source": template.source,
        "created": template.created,
        "entries": template.entries,
        "bytes": template.bytes,
        "links": template.links,
        "hard_links": [[os.fsdecode(path) for path in paths] for paths in template.hard_links],
    }
    jsonfile.write(dir_fd, MANIFEST, manifest)


def read(store: StoreDirectory, template_id: str) -> Template | None:
    """The template of this id; None when there is none. MountFailure when it is damaged."""
    path = path_of(store, template_id)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        dir_fd = os.open(template_id, flags, dir_fd=store.templates_fd)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        manifest = jsonfile.read(dir_fd, MANIFEST)
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']}, this cowfs reads {FORMAT}")
        return Template(
            id=template_id,
            path=path,
            source=str(manifest["source"]),
            created=float(manifest["created"]),
            entries=int(manifest["entries"]),
            bytes=int(manifest["bytes"]),
            hard_links=[[os.fsencode(name) for name in names] for names in manifest["hard_links"]],
            links=_policy(manifest.get("links")),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MountFailure(
            f"the template {path} is damaged ({MANIFEST}: {error}): put that file back from a "
            "backup, or move the template out of the way, and the next mount seals the source again"
        ) from None
    finally:
        os.close(dir_fd)


def note_use(store: StoreDirectory, template_id: str) -> None:
    """Note that a template is in use, or was until now: `last_used`.

    By the mtime of its manifest. That of its directory stays: the ctime of that is the moment of
    the sealing, by which `cowfs check` finds what was changed since.
    """
    with contextlib.suppress(OSError):  # it counts as one that was used earlier
        os.utime(f"{template_id}/{MANIFEST}", dir_fd=store.templates_fd, follow_symlinks=False)


def last_used(store: StoreDirectory, template: Template) -> float:
    """When a copy was last mounted or unmounted with it, or it was made: seconds since the epoch.

    Of one that an earlier version had last, when that was made.
    """
    try:
        manifest = os.stat(f"{template.id}/{MANIFEST}", dir_fd=store.templates_fd)
    except OSError:
        return template.created
    return manifest.st_mtime


def _policy(text: object) -> Policy:
    """Another version may know more of them: to this one such a source has moved on."""
    return next((policy for policy in POLICIES if policy == text), "keep")


def path_of(store: StoreDirectory, template_id: str) -> str:
    """Where a template of this id is, or would be."""
    return os.path.join(store.path, "templates", template_id)
