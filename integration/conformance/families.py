"""All cases: importing this module enters every family into the registry."""

from __future__ import annotations

from integration.conformance import (
    access,
    acls,
    directories,
    execution,
    lifetimes,
    links,
    locks,
    modes,
    names,
    opening,
    renaming,
    sizes,
    specials,
    times,
    transfer,
    xattrs,
)
from integration.conformance.cases import CASES

__all__ = [
    "CASES",
    "access",
    "acls",
    "directories",
    "execution",
    "lifetimes",
    "links",
    "locks",
    "modes",
    "names",
    "opening",
    "renaming",
    "sizes",
    "specials",
    "times",
    "transfer",
    "xattrs",
]
