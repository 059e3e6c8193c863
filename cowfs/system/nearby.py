"""What somebody may have meant who has named a directory that is not there."""

from __future__ import annotations

import itertools
import os

# Of a directory as many entries are looked at: an answer is wanted soon.
_MOST = 10_000


def directory(path: str) -> str | None:
    """The directory whose path is most like this canonical one, which leads to none; None.

    Each part that is not there is taken for the entry that is most like it.
    """
    found = "/"
    for name in filter(None, path.split("/")):
        step = os.path.join(found, name)
        if not os.path.isdir(step):
            alike = _alike(found, name)
            if alike is None:
                return None
            step = os.path.join(found, alike)
            if not os.path.isdir(step):
                return None
        found = step
    return None if found == path else found


def _alike(parent: str, name: str) -> str | None:
    import difflib  # for the one line of a failure

    try:
        with os.scandir(parent) as entries:
            names = [
                entry.name
                for entry in itertools.islice(entries, _MOST)
                if entry.is_symlink() or entry.is_dir(follow_symlinks=False)
            ]
    except OSError:
        return None
    return next(iter(difflib.get_close_matches(name, names, n=1)), None)
