"""The messages of CSI 1.12 and of the kubelet's registration, made from tables of field numbers.

Code that protoc has generated runs with one major version of protobuf alone, and says so when it is
imported: whoever installs cowfs beside other programs would have to have just that one. What goes
over the wire are the numbers and types of the specification and nothing else. So they stand here
as a table, of which descriptors are made at run time, by what every protobuf since 4.22 has.

The tables have what this driver reads or answers; what else a client sends is passed over, as
protobuf does with unknown fields.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

CSI = "csi.v1"
REGISTRATION = "pluginregistration"

# A message begins a line; its fields are below it: number, type, name. `map` is map<string,string>,
# `many` a repeated field, `|` stands before a member of the message's oneof, `enum` before the
# names of an enumeration, which are numbered from 0.
_CSI_TABLE = """
GetPluginInfoRequest
GetPluginInfoResponse
    1 string name
    2 string vendor_version
    3 map manifest
GetPluginCapabilitiesRequest
GetPluginCapabilitiesResponse
    1 many PluginCapability capabilities
PluginCapability
    1 | PluginCapability.Service service
    2 | PluginCapability.VolumeExpansion volume_expansion
PluginCapability.Service
    1 PluginCapability.Service.Type type
    enum Type UNKNOWN CONTROLLER_SERVICE VOLUME_ACCESSIBILITY_CONSTRAINTS GROUP_CONTROLLER_SERVICE
PluginCapability.VolumeExpansion
    1 PluginCapability.VolumeExpansion.Type type
    enum Type UNKNOWN ONLINE OFFLINE
ProbeRequest
ProbeResponse
    1 google.protobuf.BoolValue ready

CapacityRange
    1 int64 required_bytes
    2 int64 limit_bytes
VolumeCapability
    1 | VolumeCapability.BlockVolume block
    2 | VolumeCapability.MountVolume mount
    3 VolumeCapability.AccessMode access_mode
VolumeCapability.BlockVolume
VolumeCapability.MountVolume
    1 string fs_type
    2 many string mount_flags
    3 string volume_mount_group
VolumeCapability.AccessMode
    1 VolumeCapability.AccessMode.Mode mode
    enum Mode UNKNOWN SINGLE_NODE_WRITER SINGLE_NODE_READER_ONLY MULTI_NODE_READER_ONLY \
MULTI_NODE_SINGLE_WRITER MULTI_NODE_MULTI_WRITER SINGLE_NODE_SINGLE_WRITER SINGLE_NODE_MULTI_WRITER
VolumeContentSource
    1 | VolumeContentSource.SnapshotSource snapshot
    2 | VolumeContentSource.VolumeSource volume
VolumeContentSource.SnapshotSource
    1 string snapshot_id
VolumeContentSource.VolumeSource
    1 string volume_id
Topology
    1 map segments
TopologyRequirement
    1 many Topology requisite
    2 many Topology preferred
Volume
    1 int64 capacity_bytes
    2 string volume_id
    3 map volume_context
    4 VolumeContentSource content_source
    5 many Topology accessible_topology

CreateVolumeRequest
    1 string name
    2 CapacityRange capacity_range
    3 many VolumeCapability volume_capabilities
    4 map parameters
    5 map secrets
    6 VolumeContentSource volume_content_source
    7 TopologyRequirement accessibility_requirements
    8 map mutable_parameters
CreateVolumeResponse
    1 Volume volume
DeleteVolumeRequest
    1 string volume_id
    2 map secrets
DeleteVolumeResponse
ValidateVolumeCapabilitiesRequest
    1 string volume_id
    2 map volume_context
    3 many VolumeCapability volume_capabilities
    4 map parameters
    5 map secrets
    6 map mutable_parameters
ValidateVolumeCapabilitiesResponse
    1 ValidateVolumeCapabilitiesResponse.Confirmed confirmed
    2 string message
ValidateVolumeCapabilitiesResponse.Confirmed
    1 map volume_context
    2 many VolumeCapability volume_capabilities
    3 map parameters
    4 map mutable_parameters
ListVolumesRequest
    1 int32 max_entries
    2 string starting_token
ListVolumesResponse
    1 many ListVolumesResponse.Entry entries
    2 string next_token
ListVolumesResponse.Entry
    1 Volume volume
GetCapacityRequest
    1 many VolumeCapability volume_capabilities
    2 map parameters
    3 Topology accessible_topology
GetCapacityResponse
    1 int64 available_capacity
    2 google.protobuf.Int64Value maximum_volume_size
    3 google.protobuf.Int64Value minimum_volume_size
ControllerGetCapabilitiesRequest
ControllerGetCapabilitiesResponse
    1 many ControllerServiceCapability capabilities
ControllerServiceCapability
    1 | ControllerServiceCapability.RPC rpc
ControllerServiceCapability.RPC
    1 ControllerServiceCapability.RPC.Type type
    enum Type UNKNOWN CREATE_DELETE_VOLUME PUBLISH_UNPUBLISH_VOLUME LIST_VOLUMES GET_CAPACITY \
CREATE_DELETE_SNAPSHOT LIST_SNAPSHOTS CLONE_VOLUME PUBLISH_READONLY EXPAND_VOLUME \
LIST_VOLUMES_PUBLISHED_NODES VOLUME_CONDITION GET_VOLUME SINGLE_NODE_MULTI_WRITER MODIFY_VOLUME
ControllerExpandVolumeRequest
    1 string volume_id
    2 CapacityRange capacity_range
    3 map secrets
    4 VolumeCapability volume_capability
ControllerExpandVolumeResponse
    1 int64 capacity_bytes
    2 bool node_expansion_required

NodeStageVolumeRequest
    1 string volume_id
    2 map publish_context
    3 string staging_target_path
    4 VolumeCapability volume_capability
    5 map secrets
    6 map volume_context
NodeStageVolumeResponse
NodeUnstageVolumeRequest
    1 string volume_id
    2 string staging_target_path
NodeUnstageVolumeResponse
NodePublishVolumeRequest
    1 string volume_id
    2 map publish_context
    3 string staging_target_path
    4 string target_path
    5 VolumeCapability volume_capability
    6 bool readonly
    7 map secrets
    8 map volume_context
NodePublishVolumeResponse
NodeUnpublishVolumeRequest
    1 string volume_id
    2 string target_path
NodeUnpublishVolumeResponse
NodeGetVolumeStatsRequest
    1 string volume_id
    2 string volume_path
    3 string staging_target_path
NodeGetVolumeStatsResponse
    1 many VolumeUsage usage
VolumeUsage
    1 int64 available
    2 int64 total
    3 int64 used
    4 VolumeUsage.Unit unit
    enum Unit UNKNOWN BYTES INODES
NodeExpandVolumeRequest
    1 string volume_id
    2 string volume_path
    3 CapacityRange capacity_range
    4 string staging_target_path
    5 VolumeCapability volume_capability
    6 map secrets
NodeExpandVolumeResponse
    1 int64 capacity_bytes
NodeGetCapabilitiesRequest
NodeGetCapabilitiesResponse
    1 many NodeServiceCapability capabilities
NodeServiceCapability
    1 | NodeServiceCapability.RPC rpc
NodeServiceCapability.RPC
    1 NodeServiceCapability.RPC.Type type
    enum Type UNKNOWN STAGE_UNSTAGE_VOLUME GET_VOLUME_STATS EXPAND_VOLUME VOLUME_CONDITION \
SINGLE_NODE_MULTI_WRITER VOLUME_MOUNT_GROUP
NodeGetInfoRequest
NodeGetInfoResponse
    1 string node_id
    2 int64 max_volumes_per_node
    3 Topology accessible_topology
"""

_REGISTRATION_TABLE = """
InfoRequest
PluginInfo
    1 string type
    2 string name
    3 string endpoint
    4 many string supported_versions
RegistrationStatus
    1 bool plugin_registered
    2 string error
RegistrationStatusResponse
"""

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
}


def message(name: str, package: str = CSI) -> Any:
    """The class of a message; of one inside another by both names, with a dot."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{package}.{name}"))


def number(enumeration: str, name: str) -> int:
    """The number of a name in an enumeration, such as "VolumeUsage.Unit", "BYTES"."""
    return int(_pool.FindEnumTypeByName(f"{CSI}.{enumeration}").values_by_name[name].number)


def names(enumeration: str) -> dict[int, str]:
    """The names of an enumeration by their numbers."""
    values = _pool.FindEnumTypeByName(f"{CSI}.{enumeration}").values
    return {value.number: value.name for value in values}


class _Table:
    """One table, read into the descriptor of a file."""

    def __init__(self, package: str, text: str) -> None:
        self._package = package
        self._file = descriptor_pb2.FileDescriptorProto(
            name=f"{package}.proto",
            package=package,
            syntax="proto3",
            dependency=[wrappers_pb2.DESCRIPTOR.name],
        )
        self._messages: dict[str, Any] = {}
        self._enumerations: set[str] = set()
        lines = [line for line in text.splitlines() if line]
        # Types are told from enumerations by name, and may be used before they are defined.
        current = ""
        for line in lines:
            words = line.split()
            if not line.startswith(" "):
                current = words[0]
            elif words[0] == "enum":
                self._enumerations.add(f"{current}.{words[1]}")
        for line in lines:
            words = line.split()
            if not line.startswith(" "):
                current = self._begin(words[0])
            elif words[0] == "enum":
                self._enumerate(self._messages[current], words[1], words[2:])
            else:
                self._add(current, int(words[0]), words[1:])

    def descriptor(self) -> Any:
        return self._file

    def _begin(self, name: str) -> str:
        outer, _, own = name.rpartition(".")
        kept = self._messages[outer].nested_type if outer else self._file.message_type
        self._messages[name] = kept.add(name=own)
        return name

    def _enumerate(self, owner: Any, name: str, values: list[str]) -> None:
        # Names of values are those of the scope around the enumeration, here the message.
        made = owner.enum_type.add(name=name)
        for index, value in enumerate(values):
            made.value.add(name=value, number=index)

    def _add(self, owner: str, field_number: int, words: list[str]) -> None:
        made = self._messages[owner].field.add(
            name=words[-1], number=field_number, label=_Field.LABEL_OPTIONAL
        )
        if words[0] == "|":
            if not self._messages[owner].oneof_decl:
                self._messages[owner].oneof_decl.add(name="one")
            made.oneof_index = 0
        if words[0] == "many":
            made.label = _Field.LABEL_REPEATED
        kind = words[-2]
        if kind == "map":
            self._map(owner, made)
        elif kind in _SCALARS:
            made.type = _SCALARS[kind]
        else:
            made.type = _Field.TYPE_ENUM if kind in self._enumerations else _Field.TYPE_MESSAGE
            known = kind.startswith("google.")
            made.type_name = f".{kind}" if known else f".{self._package}.{kind}"

    def _map(self, owner: str, made: Any) -> None:
        """map<string, string> is a repeated message with a key and a value."""
        entry = "".join(word.capitalize() for word in made.name.split("_")) + "Entry"
        inner = self._messages[owner].nested_type.add(name=entry)
        inner.options.map_entry = True
        for index, name in enumerate(("key", "value"), start=1):
            inner.field.add(
                name=name, number=index, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING
            )
        made.label = _Field.LABEL_REPEATED
        made.type = _Field.TYPE_MESSAGE
        made.type_name = f".{self._package}.{owner}.{entry}"


def _made() -> Any:
    # A pool of our own: another program in this process may have its own idea of csi.v1.
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    for package, text in ((CSI, _CSI_TABLE), (REGISTRATION, _REGISTRATION_TABLE)):
        pool.AddSerializedFile(_Table(package, text).descriptor().SerializeToString())
    return pool


_pool = _made()
