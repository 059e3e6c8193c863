"""What there is compared with what is written down, at the start and once in a while.

A pod that was deleted while the kubelet was away, or the node off, is never unpublished. Its
directory goes, and by that it is known: a target whose directory is gone has nobody any more. A pod
that comes back after a reboot finds its record, and with it what it had written.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace

from cowfs.csi import targets
from cowfs.csi.calls import Refused
from cowfs.csi.records import Records, Target, Volume
from cowfs.csi.targets import Place
from cowfs.csi.volumes import Volumes
from cowfs.system import directories
from cowfs.system.errors import CowfsError

log = logging.getLogger(__name__)


def reconcile(records: Records, volumes: Volumes, kubelet: str) -> None:
    """Finish what was cut off, and put away what nobody owns. What cannot be done now is logged."""
    root = os.path.realpath(kubelet)
    for key in records.known():
        with _next_one_anyway(key):
            _settle(records, volumes, key, root)
    # A record goes last, so a mount without one is of a state directory that somebody has cleared.
    for key in set(directories.names(records.mounts_fd)) - set(records.known()):
        with _next_one_anyway(key):
            _put_away(records, volumes, key)


@contextlib.contextmanager
def _next_one_anyway(key: str) -> Iterator[None]:
    try:
        yield
    except (Refused, CowfsError, OSError) as error:
        log.warning("volume %s is as it was: %s", key, error)


def _put_away(records: Records, volumes: Volumes, key: str) -> None:
    with records.turn(key) as turn:
        if turn.read() is None and not volumes.unmount(key):
            log.warning("the mount %s has no record, and is held by somebody", key)


def _settle(records: Records, volumes: Volumes, key: str, root: str) -> None:
    with records.turn(key) as turn:
        volume = turn.read()
        if volume is None:
            return
        if not volume.ending:
            left = dict(_unowned(volume, root))
            for where, target in left.items():
                targets.unbind(where)
                if not target.staged:
                    where.remove()
                volume = volume.with_target(where.real, None)
            # A volume that CreateVolume has begun is asked for again, under its name.
            ending = volume.inline and not volume.targets
            if left or ending:
                turn.write(replace(volume, ending=ending))
            if not volume.targets and not ending:
                volumes.unmount(key)
            volume = replace(volume, ending=ending)
    if volume.ending:
        volumes.go_on_ending(key)


def _unowned(volume: Volume, root: str) -> Iterable[tuple[Place, Target]]:
    """Targets that are being left, or whose directories are gone."""
    for path, target in volume.targets.items():
        if not path.startswith(f"{root}/"):
            log.warning("%s is not below the kubelet's directory %s: left alone", path, root)
            continue
        where = Place(root, path.removeprefix(f"{root}/"))
        if target.leaving or where.is_gone():
            yield where, target
