"""Volumes of pods, in the order in which the kubelet calls."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from integration import kernel
from integration.csi.kubelet import DRIVER, Kubelet, capability, volume_of


def alive(path: Path) -> None:
    """A volume reads and takes a write."""
    assert (path / "config.json").read_text() == '{"hidden_size": 384}\n'
    (path / "new").write_text("new")
    (path / "new").unlink()


@pytest.mark.quick
def test_pod_has_a_copy_of_its_own_that_goes_with_it(node: Kubelet, xfs: Path) -> None:
    one, other = node.inline("pod-1"), node.inline("pod-2")
    node("NodePublishVolume", **one)
    node("NodePublishVolume", **other)
    (volume_of(one) / "config.json").write_text("mine")
    assert (volume_of(other) / "config.json").read_text() == '{"hidden_size": 384}\n'
    assert (xfs / "models/model/config.json").read_text() == '{"hidden_size": 384}\n'
    node.unpublish("pod-1")
    alive(volume_of(other))
    node.unpublish("pod-2")
    node.nothing_is_left()
    node.stop()


def test_a_read_only_volume_takes_no_write(node: Kubelet) -> None:
    fields = node.inline("pod-1", readonly=True)
    node("NodePublishVolume", **fields)
    assert (volume_of(fields) / "config.json").exists()
    with pytest.raises(OSError, match="Read-only"):
        (volume_of(fields) / "new").write_text("new")
    node.unpublish("pod-1")
    node.nothing_is_left()


def test_persistent_volume_keeps_what_pods_write_until_it_is_deleted(node: Kubelet) -> None:
    volume = node.create(capacity_range={"required_bytes": 1 << 20})
    assert volume.capacity_bytes == 1 << 20
    assert dict(volume.accessible_topology[0].segments) == {f"topology.{DRIVER}/node": "node-1"}
    assert not node.mounts()
    for turn in range(2):
        one, other = node.persistent(volume, "pod-1"), node.persistent(volume, "pod-2")
        stage = {
            "volume_id": volume.volume_id,
            "staging_target_path": one["staging_target_path"],
        }
        node("NodeStageVolume", volume_capability=capability(), **stage)
        node("NodePublishVolume", **one)
        node("NodePublishVolume", **other, readonly=True)
        written = volume_of(one) / f"written-{turn}"
        written.write_text("kept")
        assert (volume_of(other) / "written-0").read_text() == "kept"
        with pytest.raises(OSError, match="Read-only"):
            (volume_of(other) / "new").write_text("new")
        node.unpublish("pod-1", volume.volume_id)
        assert (volume_of(other) / "written-0").read_text() == "kept"
        node.unpublish("pod-2", volume.volume_id)
        node("NodeUnstageVolume", **stage)
        assert not node.mounts()
    node("DeleteVolume", volume_id=volume.volume_id)
    node.nothing_is_left()


def test_volume_options_hold_for_its_own_place_alone(node: Kubelet) -> None:
    fields = node.inline("pod-1", volume_capability=capability("SINGLE_NODE_WRITER", "noexec"))
    node("NodePublishVolume", **fields)
    [line] = [
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if f" {volume_of(fields)} " in line
    ]
    assert {"rw", "noexec", "nosuid", "nodev"} <= set(line.split()[5].split(","))
    node.unpublish("pod-1")


def test_stats_are_of_what_the_pod_has_written(node: Kubelet) -> None:
    fields = node.inline("pod-1")
    node("NodePublishVolume", **fields)
    (volume_of(fields) / "big").write_bytes(os.urandom(1 << 20))
    os.sync()
    [usage] = node(
        "NodeGetVolumeStats", volume_id="csi-pod-1", volume_path=fields["target_path"]
    ).usage
    assert 1 << 20 <= usage.used < 2 << 20
    assert usage.total == usage.used + usage.available
    node.unpublish("pod-1")


def test_mount_outlives_plugin_daemon_and_both(node: Kubelet) -> None:
    """No call of the pod fails, whichever of them ends."""
    fields = node.inline("pod-1")
    node("NodePublishVolume", **fields)
    failures: list[OSError] = []
    done = threading.Event()

    def use() -> None:
        while not done.is_set():
            try:
                alive(volume_of(fields))
            except OSError as error:
                failures.append(error)

    user = threading.Thread(target=use)
    user.start()
    try:
        node.kill()
        for pid, command in kernel.session_processes().items():
            if "cowfs.daemon" in command:
                os.kill(pid, signal.SIGKILL)
        node.start()
        node("NodePublishVolume", **fields)
        node.stop()
        node.start()
    finally:
        done.set()
        user.join()
    assert not failures
    node.unpublish("pod-1")
    node.nothing_is_left()


def test_volume_that_nobody_serves_is_served_again(node: Kubelet) -> None:
    fields = node.inline("pod-1")
    node("NodePublishVolume", **fields)
    (volume_of(fields) / "written").write_text("kept")
    processes = kernel.session_processes().items()
    for part in ("cowfs.keeper", "cowfs.daemon"):
        for pid, command in processes:
            if part in command:
                os.kill(pid, signal.SIGKILL)
                assert kernel.wait_for_end(pid, 10)
    node("NodePublishVolume", **fields)
    assert (volume_of(fields) / "written").read_text() == "kept"
    node.unpublish("pod-1")
    node.nothing_is_left()


def test_busy_volume_is_taken_from_its_user_and_put_away_when_he_is_gone(node: Kubelet) -> None:
    fields = node.inline("pod-1")
    node("NodePublishVolume", **fields)
    with (volume_of(fields) / "config.json").open():
        node.unpublish("pod-1")
        assert node.records()
        assert not [path for path in node.mounts() if path.startswith(str(node.root))]
    node.nothing_is_left(60)


def test_pods_of_a_node_come_in_turn(node: Kubelet) -> None:
    """Twelve at once, of which four are made at a time; none is left out."""
    fields = [node.inline(f"pod-{number}") for number in range(12)]
    for future in [node.begin("NodePublishVolume", **one) for one in fields]:
        future.result()
    for one in fields:
        alive(volume_of(one))
    for future in [
        node.begin(
            "NodeUnpublishVolume", volume_id=one["volume_id"], target_path=one["target_path"]
        )
        for one in fields
    ]:
        future.result()
    node.nothing_is_left()


def test_orphans_of_pods_that_are_gone_are_put_away_at_the_start(node: Kubelet) -> None:
    """And a pod that is there yet finds what it had written, though its mount is gone."""
    gone, stays = node.inline("pod-1"), node.inline("pod-2")
    for fields in (gone, stays):
        node("NodePublishVolume", **fields)
        (volume_of(fields) / "written").write_text("kept")
    node.kill()
    for path in reversed(node.mounts()):  # the node is off
        subprocess.run(["umount", path], check=True)
    volume_of(gone).rmdir()
    volume_of(gone).parent.rmdir()
    node.start()
    node("NodePublishVolume", **stays)
    assert (volume_of(stays) / "written").read_text() == "kept"
    for _ in range(600):
        if len(node.copies()) == len(node.records()) == 1:
            break
        threading.Event().wait(0.05)
    assert len(node.copies()) == len(node.records()) == 1
    node.unpublish("pod-2")
    node.nothing_is_left()


def test_second_driver_is_refused_the_same_state(node: Kubelet, cowfs: Callable[..., Any]) -> None:
    result = cowfs(
        *("csi", "--endpoint", node.directory / "other.sock", "--kubelet", node.root),
        *("--state", node.state, "--configuration", node.configuration),
        check=False,
    )
    assert result.returncode == 1
    assert "is in use by another driver" in result.stderr
