"""The service Controller: persistent volumes, each on the node that has its source.

It runs beside the node's services and knows the volumes of its own node alone (the provisioner's
--node-deployment). A volume is a kept copy, made at once, so that the first pod has not to wait for
the source to be sealed.

A size is a note. All volumes of a disk share what is free there, and nothing keeps one at its size:
so what is asked for is compared with what is free, written down, and told again.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import Any

from grpc import StatusCode

from cowfs.csi import calls, messages, requests, volumes
from cowfs.csi.calls import Refused, again, invalid, not_found, precondition
from cowfs.csi.records import Records, Turn, Volume, key_of
from cowfs.csi.settings import Settings, translated
from cowfs.csi.volumes import Volumes

CAPABILITIES = (
    "CREATE_DELETE_VOLUME",
    "LIST_VOLUMES",
    "GET_CAPACITY",
    "EXPAND_VOLUME",
    "SINGLE_NODE_MULTI_WRITER",
)

_KEY = re.compile("[0-9a-f]{32}")
# Characters that the specification bans from names.
_BANNED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class Controller:
    """The handlers."""

    def __init__(self, settings: Settings, records: Records, made: Volumes) -> None:
        self._settings = settings
        self._records = records
        self._volumes = made

    def service(self) -> Any:
        """For a server."""
        return calls.csi_service(
            "Controller",
            {
                "CreateVolume": self.create,
                "DeleteVolume": self.delete,
                "ValidateVolumeCapabilities": self.validate,
                "ListVolumes": self.list,
                "GetCapacity": self.capacity,
                "ControllerGetCapabilities": self.capabilities,
                "ControllerExpandVolume": self.expand,
            },
        )

    def create(self, request: Any) -> Any:
        """Make the volume of this name, or find it."""
        name = requests.text(request.name, "name of the volume")
        if _BANNED.search(name):
            raise invalid("the name of the volume has a character that names may not have")
        requests.accesses(request.volume_capabilities)
        named = requests.source(request.parameters, "parameters")
        if request.HasField("volume_content_source"):
            raise invalid("volumes are made of sources here, not of snapshots or other volumes")
        if request.mutable_parameters:
            raise invalid("this driver has no parameters that could be changed later")
        self._check_topology(request)
        settings = self._settings.read()
        source = named or settings.default
        path = settings.source(source)
        if claim := request.parameters.get(requests.CLAIM_NAMESPACE):
            settings.require(source, claim)
        volume_id = f"cowfs-{key_of(name)}"
        with self._volumes.place(), self._records.turn(key_of(volume_id)) as turn:
            volume = turn.read()
            free = volumes.free_bytes(path) if volume is None else 1 << 63
            least, most = requests.capacity(request, free)
            if volume is None:
                made = volumes.new(volume_id, source, path, settings.store)
                volume = replace(made, inline=False, name=name, capacity=least, whole=False)
            elif volume.ending:
                raise again("the volume of this name is just being removed: try again")
            elif volume.source != source:
                raise _exists(f"is of source {volume.source}")
            elif volume.capacity < least or (most and volume.capacity > most):
                raise _exists(f"has a capacity of {volume.capacity} bytes")
            if not volume.whole:
                self._make(turn, volume)
                volume = replace(volume, whole=True)
        return messages.message("CreateVolumeResponse")(volume=self._shown(volume))

    def delete(self, request: Any) -> Any:
        """Remove a volume, and what was written to it."""
        volume_id = requests.volume_id(request)
        key = key_of(volume_id)
        answer = messages.message("DeleteVolumeResponse")()
        with self._records.turn(key) as turn:
            volume = turn.read()
            if volume is not None and not volume.inline and not volume.ending:
                if volume.targets:
                    raise precondition(
                        f"the volume is in use: it is at {min(volume.targets)} on this node"
                    )
                ending = replace(volume, ending=True)
                translated(lambda: turn.write(ending))
        if volume is None or volume.inline:  # a pod's own is not the controller's
            return answer
        if not self._volumes.wait(self._volumes.go_on_ending(key)):
            raise again("the volume is held by somebody yet, and is removed later: try again")
        return answer

    def validate(self, request: Any) -> Any:
        """Whether a volume can be used in these ways."""
        volume = self._known(requests.volume_id(request))
        if not request.volume_capabilities:
            raise invalid("the volume capabilities are missing")
        answer = messages.message("ValidateVolumeCapabilitiesResponse")
        try:
            requests.accesses(request.volume_capabilities)
            for attributes in (request.volume_context, request.parameters):
                named = requests.source(attributes, "attributes")
                if named and named != volume.source:
                    raise invalid(f"the volume is of source {volume.source}, not of {named}")
            if request.mutable_parameters:
                raise invalid("this driver has no parameters that could be changed later")
        except Refused as refused:
            return answer(message=str(refused))
        return answer(
            confirmed={
                "volume_context": request.volume_context,
                "volume_capabilities": request.volume_capabilities,
                "parameters": request.parameters,
            }
        )

    def list(self, request: Any) -> Any:
        """The persistent volumes of this node, in the order of their keys."""
        if request.max_entries < 0:
            raise invalid("the number of entries is negative")
        token = request.starting_token
        if token and not _KEY.fullmatch(token):
            raise again("the starting token is none of ours: begin without one")
        found = [
            (key, volume)
            for key, volume in self._records.all()
            if key > token and not volume.inline and volume.whole and not volume.ending
        ]
        shown = found[: request.max_entries or None]
        return messages.message("ListVolumesResponse")(
            entries=[{"volume": self._shown(volume)} for _, volume in shown],
            next_token=shown[-1][0] if len(shown) < len(found) else "",
        )

    def capacity(self, request: Any) -> Any:
        """What is free for volumes of a source, or of any."""
        answer = messages.message("GetCapacityResponse")
        try:
            for capability in request.volume_capabilities:
                requests.access(capability)
            named = requests.source(request.parameters, "parameters")
            settings = self._settings.read()
            named = named or settings.default
            paths = (
                [settings.source(named)] if named else list(map(os.path.realpath, settings.roots))
            )
        except Refused:
            return answer(available_capacity=0)  # there are none of that kind
        if request.HasField("accessible_topology") and not self._is_here(
            request.accessible_topology
        ):
            return answer(available_capacity=0)
        return answer(available_capacity=translated(lambda: max(map(volumes.free_bytes, paths))))

    def expand(self, request: Any) -> Any:
        """Note another size."""
        volume_id = requests.volume_id(request)
        requests.present(request, "capacity_range")
        if request.HasField("volume_capability"):
            requests.access(request.volume_capability)
        with self._records.turn(key_of(volume_id)) as turn:
            volume = self._known(volume_id)
            least, most = requests.capacity(
                request, translated(lambda: volumes.free_bytes(volume.store))
            )
            if most and volume.capacity > most:
                raise Refused(
                    StatusCode.OUT_OF_RANGE,
                    f"the volume has {volume.capacity} bytes, and a volume does not shrink",
                )
            grown = replace(volume, capacity=max(volume.capacity, least))
            translated(lambda: turn.write(grown))
        return messages.message("ControllerExpandVolumeResponse")(
            capacity_bytes=grown.capacity, node_expansion_required=False
        )

    def capabilities(self, _request: Any) -> Any:
        """What of this service there is."""
        kind = "ControllerServiceCapability.RPC.Type"
        return messages.message("ControllerGetCapabilitiesResponse")(
            capabilities=[{"rpc": {"type": messages.number(kind, name)}} for name in CAPABILITIES]
        )

    def _make(self, turn: Turn, volume: Volume) -> None:
        """Have the copy made: by a mount, which nobody uses yet. Refused; then nothing is left."""

        def work() -> None:
            turn.write(volume)
            self._volumes.mount(turn, volume)
            if not self._volumes.unmount(turn.key):
                raise again("the new volume is held by somebody: try again")
            turn.write(replace(volume, whole=True))

        try:
            translated(work)
        except Refused:
            ending = replace(volume, ending=True)
            translated(lambda: turn.write(ending))
            if not translated(lambda: self._volumes.put_away(turn, ending)):
                self._volumes.go_on_ending(turn.key)
            raise

    def _known(self, volume_id: str) -> Volume:
        volume = self._records.read(key_of(volume_id))
        if volume is None or volume.inline or not volume.whole or volume.ending:
            raise not_found("there is no such volume on this node")
        return volume

    def _shown(self, volume: Volume) -> dict[str, Any]:
        return {
            "volume_id": volume.id,
            "capacity_bytes": volume.capacity,
            "volume_context": {requests.SOURCE: volume.source},
            "accessible_topology": [{"segments": self._settings.topology}],
        }

    def _check_topology(self, request: Any) -> None:
        """Refused if the volume has to be on other nodes."""
        wanted = request.accessibility_requirements.requisite
        if wanted and not any(map(self._is_here, wanted)):
            raise Refused(
                StatusCode.RESOURCE_EXHAUSTED,
                f"the volume has to be on another node than {self._settings.node}",
            )

    def _is_here(self, topology: Any) -> bool:
        ours = self._settings.topology
        return all(ours.get(key) == value for key, value in topology.segments.items())


def _exists(what: str) -> Refused:
    return Refused(
        StatusCode.ALREADY_EXISTS, f"the volume of this name is there already, and {what}"
    )
