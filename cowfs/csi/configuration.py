"""Which sources there are, and who may have them: a small JSON file, which is the operator's.

    {"roots": ["/data/models"],
     "sources": {"llama-70b": {"namespaces": ["inference", "team-*"]}},
     "default": "llama-70b", "store": "/data/.cowfs", "pod_info": true}

A source is a name below one of the roots; the first root that has it. Names and namespaces are
patterns of a shell, and the first pattern of a source that matches counts. `default` is the source
where none is named. Without `pod_info` volumes are published though nobody has said for which pod:
that is for clients that are no kubelet.

The file is read for each call, so a change needs no restart. Roots are the operator's word, and
links in them are followed. Below a root users may have rights: from there on nothing is (openat2).
"""

from __future__ import annotations

import errno
import fnmatch
import json
import os
from typing import Any, NamedTuple

from grpc import StatusCode

from cowfs.csi.calls import Refused, invalid, not_found, precondition
from cowfs.system import syscalls

_KEYS = {"roots", "sources", "default", "store", "pod_info"}
_NAME_MAX = 1024  # bytes


class Rule(NamedTuple):
    """Sources, and the namespaces that may have them; both are patterns."""

    sources: str
    namespaces: tuple[str, ...]


class Configuration(NamedTuple):
    """What the file says."""

    roots: tuple[str, ...]
    rules: tuple[Rule, ...]
    default: str = ""
    store: str | None = None
    pod_info: bool = True

    def source(self, name: str) -> str:
        """The canonical path of a source. Refused: nobody allowed it, or it is not there."""
        _check_name(name)
        if self._rule(name) is None:
            raise Refused(
                StatusCode.PERMISSION_DENIED,
                f"source {name} is not among those that the operator of this node allows",
            )
        for root in self.roots:
            if (path := _below(os.path.realpath(root), name)) is not None:
                return path
        raise not_found(
            f"source {name} is not on this node: no such directory below {', '.join(self.roots)}"
        )

    def require(self, name: str, namespace: str) -> None:
        """Refused unless this namespace may have the source."""
        rule = self._rule(name)
        if rule is None or not any(
            fnmatch.fnmatchcase(namespace, pattern) for pattern in rule.namespaces
        ):
            raise Refused(
                StatusCode.PERMISSION_DENIED,
                f"source {name} is not allowed in namespace {namespace}: the operator of this node "
                "says which namespaces may use it",
            )

    def _rule(self, name: str) -> Rule | None:
        found = (rule for rule in self.rules if fnmatch.fnmatchcase(name, rule.sources))
        return next(found, None)


def read(path: str) -> Configuration:
    """The configuration, as it is now. Refused says what is wrong with it."""
    try:
        with open(path, encoding="utf-8") as stream:
            value = json.load(stream)
        return _parsed(value)
    except OSError as error:
        raise precondition(
            f"the driver's configuration {path} on this node cannot be read: {error.strerror}"
        ) from None
    except (ValueError, TypeError) as error:
        raise precondition(f"the driver's configuration {path} on this node: {error}") from None


def _parsed(value: Any) -> Configuration:
    if not isinstance(value, dict):
        raise TypeError("it is no JSON object")
    if unknown := value.keys() - _KEYS:
        raise ValueError(f"{min(unknown)} is no setting: there are {', '.join(sorted(_KEYS))}")
    roots = _texts(value.get("roots"), "roots")
    if not roots or not all(root.startswith("/") for root in roots):
        raise ValueError("roots names no absolute directory")
    sources = value.get("sources", {})
    if not isinstance(sources, dict):
        raise TypeError("sources is no JSON object")
    rules = []
    for pattern, rule in sources.items():
        if not isinstance(rule, dict) or rule.keys() != {"namespaces"}:
            raise ValueError(f"the source {pattern} needs namespaces, and nothing else")
        rules.append(Rule(pattern, _texts(rule["namespaces"], f"namespaces of {pattern}")))
    default, store = value.get("default", ""), value.get("store")
    pod_info = value.get("pod_info", True)
    if not isinstance(default, str) or not isinstance(pod_info, bool):
        raise TypeError("default is no text, or pod_info neither true nor false")
    if store is not None and not (isinstance(store, str) and store.startswith("/")):
        raise TypeError("store is no absolute path")
    return Configuration(roots, tuple(rules), default, store, pod_info)


def _texts(value: Any, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"{what} is no list of texts")
    return tuple(value)


def _check_name(name: str) -> None:
    """A name is a relative path of plain components."""
    if not name:
        raise invalid("no source is named: say source in the volume's attributes or parameters")
    parts = name.split("/")
    if (
        not name.isprintable()
        or len(os.fsencode(name)) > _NAME_MAX
        or any(part in ("", ".", "..") for part in parts)
    ):
        raise invalid(
            "source is no name below a root: it has an empty part, '.', '..', a character that "
            "cannot be shown, or more than 1024 bytes"
        )


def _below(root: str, name: str) -> str | None:
    """Where the directory of this name is, None when there is none. Refused: a link is in it."""
    try:
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        os.close(syscalls.open_below(fd, os.fsencode(name), os.O_PATH | os.O_DIRECTORY))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        if error.errno == errno.ELOOP:
            raise precondition(
                f"source {name} leads through a symbolic link, and none is followed below {root}"
            ) from None
        raise precondition(f"source {name} cannot be used: {error.strerror}") from None
    finally:
        os.close(fd)
    return os.path.join(root, name)
