"""The place of a mount, on mounts that every Linux has."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cowfs.mount.mountpoint import Mountpoint
from cowfs.system import mountinfo


def test_the_device_is_that_of_the_mount_and_not_of_what_its_path_says() -> None:
    mount = mountinfo.mounted_at("/proc")
    assert mount is not None
    place = Mountpoint("/proc")
    assert place.mounted() == mount.device
    assert place.mount_id == Mountpoint.of(mount).mount_id


def test_where_nothing_is_mounted_is_no_place_of_ours(tmp_path: Path) -> None:
    place = Mountpoint(str(tmp_path.resolve()))
    with pytest.raises(OSError, match="vanished") as refused:
        place.mounted()
    assert refused.value.errno == errno.ESTALE
    assert place.mount_id == -1
