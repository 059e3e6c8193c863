"""What stands in requests of several services, checked: ids, capabilities, sizes, attributes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from grpc import StatusCode

from cowfs.csi import messages
from cowfs.csi.calls import Refused, invalid
from cowfs.csi.targets import FLAGS

# csi.proto, "Size Limits": of a text, and of a map, in bytes.
_TEXT_MAX = 128
_MAP_MAX = 4096

# Keys of the kubelet and of the provisioner, which nobody has to know.
_FOREIGN = ("csi.storage.k8s.io/", "storage.kubernetes.io/")
SOURCE = "source"
EPHEMERAL = "csi.storage.k8s.io/ephemeral"
POD_UID = "csi.storage.k8s.io/pod.uid"
POD_NAMESPACE = "csi.storage.k8s.io/pod.namespace"
CLAIM_NAMESPACE = "csi.storage.k8s.io/pvc/namespace"

# Access modes by what they mean here. Other nodes have no part in a volume, so the many are one.
ONE_TARGET = {"SINGLE_NODE_WRITER", "SINGLE_NODE_SINGLE_WRITER", "SINGLE_NODE_READER_ONLY"}
READERS = {"SINGLE_NODE_READER_ONLY", "MULTI_NODE_READER_ONLY"}
_MODES = ONE_TARGET | READERS | {"SINGLE_NODE_MULTI_WRITER"}


class Access(NamedTuple):
    """How a volume is to be used. flags: mount options."""

    mode: str
    flags: tuple[str, ...]

    @property
    def reads_only(self) -> bool:
        """Whether nothing may be written."""
        return self.mode in READERS or "ro" in self.flags


def volume_id(request: Any) -> str:
    """The id of the volume that a request is about. Refused."""
    return text(request.volume_id, "volume id")


def text(value: str, what: str) -> str:
    """A text that has to be there. Refused."""
    if not value:
        raise invalid(f"the {what} is missing")
    if len(value.encode(errors="surrogatepass")) > _TEXT_MAX:
        raise invalid(f"the {what} is longer than {_TEXT_MAX} bytes")
    return value


def access(capability: Any) -> Access:
    """A capability, if this driver has it. Refused."""
    kind = capability.WhichOneof("one")
    if kind is None:
        raise invalid("the volume capability says neither block nor mount")
    if kind == "block":
        raise invalid("volumes are directories here: there are no block devices")
    if capability.mount.volume_mount_group:
        raise invalid(
            "this driver shows no other group than the files have: leave out fsGroup, or say "
            "fsGroupPolicy: None in the CSIDriver"
        )
    mode = messages.names("VolumeCapability.AccessMode.Mode").get(capability.access_mode.mode)
    if mode is None or mode == "UNKNOWN":
        raise invalid("the volume capability has no access mode that is known")
    if mode not in _MODES:
        raise invalid(f"a volume is on one node, and cannot be used as {mode}")
    for flag in capability.mount.mount_flags:
        if flag not in FLAGS:
            shown = flag if len(flag) < 64 else f"{flag[:61]}..."
            raise invalid(f"mount option {shown} is not for volumes: there are {', '.join(FLAGS)}")
    return Access(mode, tuple(sorted(set(capability.mount.mount_flags))))


def accesses(capabilities: Iterable[Any]) -> list[Access]:
    """Several, of which there has to be one. Refused."""
    found = [access(capability) for capability in capabilities]
    if not found:
        raise invalid("the volume capabilities are missing")
    return found


def present(request: Any, name: str) -> Any:
    """A message in a request that has to be there. Refused."""
    if not request.HasField(name):
        raise invalid(f"the {name.replace('_', ' ')} is missing")
    return getattr(request, name)


def source(attributes: Mapping[str, str], what: str) -> str:
    """The source that attributes name; empty when they name none. Refused: what nobody knows."""
    if sum(len(key) + len(value) for key, value in attributes.items()) > _MAP_MAX:
        raise invalid(f"the {what} are longer than {_MAP_MAX} bytes")
    for key in sorted(attributes):
        if key != SOURCE and not key.startswith(_FOREIGN):
            raise invalid(f"the {what} have {key[:64]}, which is not known: there is {SOURCE}")
    return attributes.get(SOURCE, "")


def capacity(request: Any, free: int) -> tuple[int, int]:
    """What is asked for at least and at most, in bytes; 0: nothing said. Refused: not to be had.

    Nothing keeps a volume at its size, and no room is set aside for it: what is free when it is
    asked for is all that can be said.
    """
    if not request.HasField("capacity_range"):
        return 0, 0
    least, most = request.capacity_range.required_bytes, request.capacity_range.limit_bytes
    if least < 0 or most < 0:
        raise invalid("a capacity is negative")
    if most and least > most:
        raise invalid(f"a capacity of {least} bytes is asked for, and not more than {most}")
    if least > free:
        raise Refused(
            StatusCode.OUT_OF_RANGE,
            f"{least} bytes are asked for, and {free} are free on the source's disk",
        )
    return least, most
