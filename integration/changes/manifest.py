"""What a list of differences promises, checked against what two trees look like from outside.

And a layer of an image applied by the letter of the image specification.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from integration.trees import Entry


def complaints(
    old: Mapping[str, Entry], new: Mapping[str, Entry], changes: list[dict[str, Any]]
) -> list[str]:
    """Where the changes are not what makes the new tree of the old one, no more and no less."""
    removed = {one["path"] for one in changes if one["kind"] == "removed"}
    added = {one["path"] for one in changes if one["kind"] == "added"}
    renamed = {one["old_path"]: one["path"] for one in changes if one["kind"] == "renamed"}
    told = {one["path"]: set(one["what"]) for one in changes if one["kind"] in _OF_A_PAIR}
    found = [f"{path} is not in the old tree" for path in removed | set(renamed) if path not in old]
    pairs = {_moved(path, renamed): path for path in old if path not in removed}
    if names := (set(pairs) | added) ^ set(new):
        found.append(f"names: {sorted(names)}")
    if twice := set(pairs) & added:
        found.append(f"added, and there before: {sorted(twice)}")
    for path, before in pairs.items():
        if path in new:
            differs = _visible(old[before]) != _visible(new[path])
            if differs != bool(told.get(path, set()) - {"links"}):
                found.append(f"{path}: {old[before]} {new[path]} told as {told.get(path)}")
    if gone := set(told) - set(pairs):
        found.append(f"changed, but not in both trees: {sorted(gone)}")
    return found


_OF_A_PAIR = ("changed", "renamed")


def _visible(entry: Entry) -> Entry:
    return entry._replace(nlink=0, links=(), mtime_ns=None)


def _moved(path: str, renamed: Mapping[str, str]) -> str:
    at = path
    while at not in renamed:
        at = os.path.dirname(at)
        if not at:
            return path
    return renamed[at] + path[len(at) :]


def apply_layer(file: Path, root: Path) -> None:
    """Apply a layer to a directory: image-spec, layer.md, "Applying Changesets"."""
    directories: dict[Path, int] = {}
    with tarfile.open(file) as layer:
        for member in layer:
            path = root / member.name
            parent, name = path.parent, path.name
            st = parent.stat()
            if name == ".wh..wh..opq":
                for other in list(parent.iterdir()):
                    _remove(other)
            elif name.startswith(".wh."):
                _remove(parent / name.removeprefix(".wh."))
            elif member.isdir():
                if not path.is_dir() or path.is_symlink():
                    _remove(path)
                    path.mkdir()
                directories[path] = _mtime(member)
                _attributes(path, member)
            else:
                _remove(path)
                if member.islnk():
                    os.link(root / member.linkname, path, follow_symlinks=False)
                else:
                    layer.extract(member, root, filter="fully_trusted")
                    _attributes(path, member)
            if parent not in directories:
                os.utime(parent, ns=(st.st_atime_ns, st.st_mtime_ns))
    for path, mtime in directories.items():
        os.utime(path, ns=(mtime, mtime))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _attributes(path: Path, member: tarfile.TarInfo) -> None:
    os.chown(path, member.uid, member.gid, follow_symlinks=False)
    for name in os.listxattr(path, follow_symlinks=False):
        os.removexattr(path, name, follow_symlinks=False)
    for key, value in member.pax_headers.items():
        if key.startswith("SCHILY.xattr."):
            data = value.encode("utf-8", "surrogateescape")
            os.setxattr(path, key.removeprefix("SCHILY.xattr."), data, follow_symlinks=False)
    if not member.issym():
        path.chmod(member.mode)
    os.utime(path, ns=(_mtime(member), _mtime(member)), follow_symlinks=False)


def _mtime(member: tarfile.TarInfo) -> int:
    seconds, _, fraction = member.pax_headers.get("mtime", str(int(member.mtime))).partition(".")
    return int(seconds) * 10**9 + int(fraction.ljust(9, "0") or 0)
