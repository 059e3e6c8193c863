"""What each call answers: to bad input, when it comes again, and when another is under way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from integration.csi.kubelet import Kubelet, capability, volume_of
from integration.volumes import Volume

TEN = range(10)


def test_what_is_wrong_with_a_publish_is_said_and_nothing_is_left(node: Kubelet) -> None:
    """Each case alone: what is changed of a good call, the code, and words of the sentence."""
    good = node.inline("pod-1")
    target = Path(good["target_path"])
    models = Path(node.settings["roots"][0])
    (models / "link").symlink_to("/etc")
    (models / "file").write_text("")
    forged = node.context("pod-2", inline=True, source="model")
    elsewhere = good["volume_context"] | {"csi.storage.k8s.io/pod.namespace": "kube-system"}

    def source(name: str) -> dict[str, Any]:
        return {"volume_context": node.context("pod-1", inline=True, source=name)}

    def flags(*words: str) -> dict[str, Any]:
        return {"volume_capability": capability("SINGLE_NODE_WRITER", *words)}

    group = {"mount": {"volume_mount_group": "7"}, "access_mode": {"mode": 1}}
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"volume_id": ""}, "INVALID_ARGUMENT", "volume id is missing"),
        ({"volume_id": "x" * 129}, "INVALID_ARGUMENT", "128 bytes"),
        ({"target_path": ""}, "INVALID_ARGUMENT", "target path is missing"),
        ({"target_path": "mnt"}, "INVALID_ARGUMENT", "absolute"),
        ({"target_path": f"{target}/../../../x"}, "INVALID_ARGUMENT", "plain"),
        ({"target_path": "/srv/mount"}, "INVALID_ARGUMENT", "not below"),
        ({"target_path": str(node.root)}, "INVALID_ARGUMENT", "not below"),
        ({"target_path": str(node.root / "plugins/x")}, "INVALID_ARGUMENT", "pod's volume"),
        ({"volume_capability": None}, "INVALID_ARGUMENT", "capability is missing"),
        ({"volume_capability": {}}, "INVALID_ARGUMENT", "capability"),
        ({"volume_capability": {"block": {}}}, "INVALID_ARGUMENT", "no block devices"),
        ({"volume_capability": {"mount": {}}}, "INVALID_ARGUMENT", "no access mode"),
        ({"volume_capability": group}, "INVALID_ARGUMENT", "fsGroup"),
        (
            {"volume_capability": capability("MULTI_NODE_MULTI_WRITER")},
            "INVALID_ARGUMENT",
            "one node",
        ),
        (flags("suid"), "INVALID_ARGUMENT", "suid"),
        (source(""), "INVALID_ARGUMENT", "no source"),
        (source("../models"), "INVALID_ARGUMENT", "no name below a root"),
        (source("/etc"), "INVALID_ARGUMENT", "no name below a root"),
        (source("a\nb"), "INVALID_ARGUMENT", "no name below a root"),
        (source("gone"), "NOT_FOUND", "not on this node"),
        (source("link"), "FAILED_PRECONDITION", "symbolic link"),
        (source("file"), "FAILED_PRECONDITION", "Not a directory"),
        ({"volume_context": good["volume_context"] | {"sorce": "x"}}, "INVALID_ARGUMENT", "sorce"),
        (source("x" * 5000), "INVALID_ARGUMENT", "4096"),
        ({"volume_context": forged}, "PERMISSION_DENIED", "another pod"),
        ({"volume_context": elsewhere}, "PERMISSION_DENIED", "kube-system"),
        (
            {"volume_context": {"source": "model", "csi.storage.k8s.io/ephemeral": "true"}},
            "INVALID_ARGUMENT",
            "podInfoOnMount",
        ),
        (
            {"volume_context": node.context("pod-1", inline=False)},
            "NOT_FOUND",
            "no such volume",
        ),
    ]
    for changes, code, words in cases:
        fields = {name: value for name, value in (good | changes).items() if value is not None}
        got, sentence = node.refused("NodePublishVolume", **fields)
        assert (got, words in sentence) == (code, True), (changes, got, sentence)
    for method, name in (
        ("NodeUnpublishVolume", "target_path"),
        ("NodeUnstageVolume", "staging_target_path"),
    ):
        assert node.refused(method, **{name: str(target)})[0] == "INVALID_ARGUMENT"
        assert node.refused(method, volume_id="x")[0] == "INVALID_ARGUMENT"
        node(method, volume_id="never/seen\n", **{name: str(target)})
    for path in (str(target), "mnt", "/nowhere"):
        assert node.refused("NodeGetVolumeStats", volume_id="x", volume_path=path)[0] == "NOT_FOUND"
        assert node.refused("NodeExpandVolume", volume_id="x", volume_path=path)[0] == "NOT_FOUND"
    node.configure(sources={})
    assert node.refused("NodePublishVolume", **good)[0] == "PERMISSION_DENIED"
    node.configuration.write_text("{")
    assert node.refused("NodePublishVolume", **good)[0] == "FAILED_PRECONDITION"
    node.nothing_is_left(0)


def test_what_pods_have_planted_at_a_target_is_not_followed(node: Kubelet, tmp_path: Path) -> None:
    for number, (plant, code) in enumerate(
        [
            (lambda path: path.symlink_to(tmp_path), "INVALID_ARGUMENT"),
            (lambda path: path.write_text(""), "INVALID_ARGUMENT"),
            (lambda path: path.parent.chmod(0o777), "FAILED_PRECONDITION"),
            (lambda path: path.parent.rmdir(), "FAILED_PRECONDITION"),
            (
                lambda path: (path.parent.rmdir(), path.parent.symlink_to(tmp_path)),
                "INVALID_ARGUMENT",
            ),
        ]
    ):
        fields = node.inline(f"pod-{number}")
        plant(volume_of(fields))
        got, sentence = node.refused("NodePublishVolume", **fields)
        assert got == code, sentence
    assert not os.listdir(tmp_path)
    assert not node.mounts()
    assert not node.copies()


def test_source_on_a_disk_without_clones_is_refused(node: Kubelet, ext4_volume: Volume) -> None:
    plain = ext4_volume.mountpoint / "models"
    (plain / "model").mkdir(parents=True, exist_ok=True)
    node.configure(roots=[str(plain)], store=None)
    got, sentence = node.refused("NodePublishVolume", **node.inline("pod-1"))
    assert got == "FAILED_PRECONDITION", sentence
    node.nothing_is_left()


def test_every_call_can_come_ten_times(node: Kubelet) -> None:
    inline = node.inline("pod-1")
    volumes = {node.create("x" * 128).volume_id for _ in TEN}
    [volume] = [node.create("x" * 128) for _ in range(1)]
    assert volumes == {volume.volume_id}
    persistent = node.persistent(
        volume, "pod-2", volume_capability=capability("SINGLE_NODE_WRITER")
    )
    stage = {
        "volume_id": volume.volume_id,
        "staging_target_path": persistent["staging_target_path"],
    }
    assert node.refused("NodePublishVolume", **persistent)[0] == "FAILED_PRECONDITION"
    for _ in TEN:
        node("NodeStageVolume", volume_capability=capability(), **stage)
    for _ in TEN:
        node("NodePublishVolume", **persistent)
        node("NodePublishVolume", **inline)
    # Two stages and targets, and one mount of each volume: nothing is stacked.
    assert len(node.mounts()) == 5
    for changes in ({"readonly": True}, {"volume_capability": capability()}):
        got, _ = node.refused("NodePublishVolume", **(persistent | changes))
        assert got == "ALREADY_EXISTS"
    got, _ = node.refused("NodePublishVolume", **node.persistent(volume, "pod-3"))
    assert got == "FAILED_PRECONDITION"
    assert node.refused("DeleteVolume", volume_id=volume.volume_id)[0] == "FAILED_PRECONDITION"
    for _ in TEN:
        for method in ("NodeGetInfo", "NodeGetCapabilities", "Probe", "GetPluginCapabilities"):
            node(method)
        where = {"volume_id": volume.volume_id, "volume_path": persistent["target_path"]}
        node("NodeGetVolumeStats", **where)
        grown = {"capacity_range": {"required_bytes": 1 << 20}}
        assert node("NodeExpandVolume", **where, **grown).capacity_bytes == 1 << 20
        answer = node("ControllerExpandVolume", volume_id=volume.volume_id, **grown)
        assert (answer.capacity_bytes, answer.node_expansion_required) == (1 << 20, False)
    for _ in TEN:
        node("NodeUnpublishVolume", volume_id="csi-pod-1", target_path=inline["target_path"])
        node(
            "NodeUnpublishVolume",
            volume_id=volume.volume_id,
            target_path=persistent["target_path"],
        )
    for _ in TEN:
        node("NodeUnstageVolume", **stage)
    for _ in TEN:
        node("DeleteVolume", volume_id=volume.volume_id)
    node.nothing_is_left()


def test_what_is_wrong_with_the_controllers_calls_is_said(node: Kubelet) -> None:
    good = {
        "name": "pvc-1",
        "parameters": {"source": "model"},
        "volume_capabilities": [capability()],
    }
    elsewhere = {"requisite": [{"segments": {"topology.csi.cowfs/node": "node-2"}}]}
    claim = {"source": "model", "csi.storage.k8s.io/pvc/namespace": "kube-system"}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"name": ""}, "INVALID_ARGUMENT"),
        ({"name": "x" * 129}, "INVALID_ARGUMENT"),
        ({"name": "a\0b"}, "INVALID_ARGUMENT"),
        ({"volume_capabilities": []}, "INVALID_ARGUMENT"),
        ({"volume_capabilities": [capability("MULTI_NODE_MULTI_WRITER")]}, "INVALID_ARGUMENT"),
        ({"parameters": {}}, "INVALID_ARGUMENT"),
        ({"parameters": {"source": "model", "size": "1"}}, "INVALID_ARGUMENT"),
        ({"parameters": {"source": "gone"}}, "NOT_FOUND"),
        ({"parameters": claim}, "PERMISSION_DENIED"),
        ({"volume_content_source": {"volume": {"volume_id": "x"}}}, "INVALID_ARGUMENT"),
        ({"mutable_parameters": {"a": "b"}}, "INVALID_ARGUMENT"),
        ({"accessibility_requirements": elsewhere}, "RESOURCE_EXHAUSTED"),
        ({"capacity_range": {"required_bytes": 1 << 60}}, "OUT_OF_RANGE"),
        ({"capacity_range": {"required_bytes": 2, "limit_bytes": 1}}, "INVALID_ARGUMENT"),
        ({"capacity_range": {"required_bytes": -1}}, "INVALID_ARGUMENT"),
    ]
    for changes, code in cases:
        got, sentence = node.refused("CreateVolume", **(good | changes))
        assert got == code, (changes, sentence)
    node.nothing_is_left(0)

    volumes = [node.create(f"pvc-{number}") for number in range(3)]
    got, _ = node.refused("CreateVolume", **good, capacity_range={"required_bytes": 5})
    assert got == "ALREADY_EXISTS"
    listed, token = [], ""
    while True:
        page = node("ListVolumes", max_entries=2, starting_token=token)
        listed += [entry.volume.volume_id for entry in page.entries]
        if not (token := page.next_token):
            break
    assert sorted(listed) == sorted(volume.volume_id for volume in volumes)
    unknown = {"starting_token": "mine"}
    assert node.refused("ListVolumes", **unknown)[0] == "ABORTED"
    assert node.refused("ListVolumes", max_entries=-1)[0] == "INVALID_ARGUMENT"
    validate = {"volume_id": volumes[0].volume_id}
    answer = node("ValidateVolumeCapabilities", volume_capabilities=[capability()], **validate)
    assert answer.HasField("confirmed")
    wrong = [capability("MULTI_NODE_SINGLE_WRITER")]
    answer = node("ValidateVolumeCapabilities", volume_capabilities=wrong, **validate)
    assert not answer.HasField("confirmed")
    assert "one node" in answer.message
    assert node.refused("ValidateVolumeCapabilities", **validate)[0] == "INVALID_ARGUMENT"
    for method in ("ValidateVolumeCapabilities", "ControllerExpandVolume"):
        fields = {"volume_id": "x", "capacity_range": {"required_bytes": 1}}
        if method == "ValidateVolumeCapabilities":
            fields = {"volume_id": "x", "volume_capabilities": [capability()]}
        assert node.refused(method, **fields)[0] == "NOT_FOUND"
    assert node("GetCapacity", parameters={"source": "model"}).available_capacity > 1 << 20
    assert node("GetCapacity", parameters={"source": "gone"}).available_capacity == 0
    assert (
        node("GetCapacity", accessible_topology=elsewhere["requisite"][0]).available_capacity == 0
    )
    for volume in volumes:
        node("DeleteVolume", volume_id=volume.volume_id)
    assert node.refused("DeleteVolume")[0] == "INVALID_ARGUMENT"
    node.nothing_is_left()
