"""Messages go over the wire as the specification numbers their fields."""

from __future__ import annotations

from cowfs.csi import messages


def test_publish_is_encoded_as_protoc_would() -> None:
    """Byte by byte: number and type of a field, length, value (protobuf.dev, "Encoding")."""
    request = messages.message("NodePublishVolumeRequest")(
        volume_id="v",
        target_path="/t",
        readonly=True,
        volume_capability={"mount": {"mount_flags": ["ro"]}, "access_mode": {"mode": 7}},
        volume_context={"k": "w"},
    )
    capability = b"\x12\x04\x12\x02ro" + b"\x1a\x02\x08\x07"
    assert request.SerializeToString(deterministic=True) == (
        b"\x0a\x01v"
        + b"\x22\x02/t"
        + b"\x2a\x0a"
        + capability
        + b"\x30\x01"
        + b"\x42\x06\x0a\x01k\x12\x01w"
    )


def test_one_member_of_a_oneof_puts_the_other_out() -> None:
    capability = messages.message("VolumeCapability")(block={})
    assert capability.WhichOneof("one") == "block"
    capability.mount.fs_type = "xfs"
    assert capability.WhichOneof("one") == "mount"


def test_what_is_not_in_the_tables_is_passed_over() -> None:
    request = messages.message("ProbeRequest")
    assert request.FromString(b"\x7a\x01x") == request.FromString(b"\x7a\x01x")


def test_enumerations_are_numbered_as_in_the_specification() -> None:
    modes = messages.names("VolumeCapability.AccessMode.Mode")
    assert (modes[5], modes[7]) == ("MULTI_NODE_MULTI_WRITER", "SINGLE_NODE_MULTI_WRITER")
    assert messages.number("ControllerServiceCapability.RPC.Type", "EXPAND_VOLUME") == 9
    assert messages.number("ControllerServiceCapability.RPC.Type", "SINGLE_NODE_MULTI_WRITER") == 13
    assert messages.number("NodeServiceCapability.RPC.Type", "VOLUME_MOUNT_GROUP") == 6
