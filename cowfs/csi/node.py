"""The service Node: volumes are staged, published to pods, and taken away again.

A publish writes down what it is about to do, sees that the volume's copy is mounted, and binds it.
When it fails it takes back what it did before it answers. An unpublish marks the target, unbinds it
with no turn taken, and forgets it; with its last target a pod's own volume ends.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from grpc import StatusCode

from cowfs.csi import calls, messages, requests, targets, volumes
from cowfs.csi.calls import Refused, again, invalid, not_found, precondition
from cowfs.csi.configuration import Configuration
from cowfs.csi.records import Records, Target, Turn, Volume, key_of
from cowfs.csi.requests import Access
from cowfs.csi.settings import Settings, translated
from cowfs.csi.targets import Place
from cowfs.csi.volumes import Volumes

log = logging.getLogger(__name__)

CAPABILITIES = (
    "STAGE_UNSTAGE_VOLUME",
    "GET_VOLUME_STATS",
    "EXPAND_VOLUME",
    "SINGLE_NODE_MULTI_WRITER",
)


class Node:
    """The handlers."""

    def __init__(self, settings: Settings, records: Records, made: Volumes) -> None:
        self._settings = settings
        self._records = records
        self._volumes = made

    def service(self) -> Any:
        """For a server."""
        return calls.csi_service(
            "Node",
            {
                "NodeStageVolume": self.stage,
                "NodeUnstageVolume": self.unstage,
                "NodePublishVolume": self.publish,
                "NodeUnpublishVolume": self.unpublish,
                "NodeGetVolumeStats": self.stats,
                "NodeExpandVolume": self.expand,
                "NodeGetCapabilities": self.capabilities,
                "NodeGetInfo": self.info,
            },
        )

    def stage(self, request: Any) -> Any:
        """Mount a persistent volume for the node."""
        volume_id = requests.volume_id(request)
        where = self._place(request.staging_target_path, "staging target path")
        access = requests.access(requests.present(request, "volume_capability"))
        requests.source(request.volume_context, "volume's attributes")
        target = Target(True, access.reads_only, access.mode, access.flags)
        with self._volumes.place(), self._records.turn(key_of(volume_id)) as turn:
            volume = self._known(turn.read(), volume_id)
            if volume.inline:
                raise precondition("a pod's own volume is not staged")
            _check_same(volume, where, target)
            self._bind(turn, volume, where, target)
        return messages.message("NodeStageVolumeResponse")()

    def unstage(self, request: Any) -> Any:
        """The other way."""
        volume_id = requests.volume_id(request)
        where = self._place(request.staging_target_path, "staging target path")
        self._leave(volume_id, where)
        return messages.message("NodeUnstageVolumeResponse")()

    def publish(self, request: Any) -> Any:
        """Bind a volume for a pod; make it first if it is the pod's own."""
        volume_id = requests.volume_id(request)
        where = self._place(request.target_path, "target path")
        access = requests.access(requests.present(request, "volume_capability"))
        attributes = request.volume_context
        source = requests.source(attributes, "volume's attributes")
        settings = self._settings.read()
        namespace = _pod(settings, attributes, where)
        target = Target(False, request.readonly or access.reads_only, access.mode, access.flags)
        inline = attributes.get(requests.EPHEMERAL) == "true"
        with self._volumes.place(), self._records.turn(key_of(volume_id)) as turn:
            volume = turn.read()
            if volume is None and inline:
                name = source or settings.default
                path = settings.source(name)
                volume = volumes.new(volume_id, name, path, settings.store)
                volume = replace(volume, read_only=target.read_only)
            volume = self._known(volume, volume_id)
            if volume.inline != inline:
                raise invalid("this id is that of a volume of the other kind")
            if source and source != volume.source:
                raise invalid(f"the volume is of {volume.source}, not of {source}")
            if namespace is not None:
                settings.require(volume.source, namespace)
            if not inline:
                self._check_staged(volume, request.staging_target_path)
            _check_same(volume, where, target)
            _check_beside(volume, where, access, target)
            self._bind(turn, volume, where, target)
        return messages.message("NodePublishVolumeResponse")()

    def unpublish(self, request: Any) -> Any:
        """The other way; a pod's own volume ends with it."""
        volume_id = requests.volume_id(request)
        where = self._place(request.target_path, "target path")
        self._leave(volume_id, where)
        return messages.message("NodeUnpublishVolumeResponse")()

    def stats(self, request: Any) -> Any:
        """What a volume holds and could hold, without a look into its mount."""
        volume_id = requests.volume_id(request)
        volume = self._at(volume_id, request.volume_path)
        usage = translated(lambda: self._volumes.usage(key_of(volume_id), volume))
        return messages.message("NodeGetVolumeStatsResponse")(
            usage=[
                {
                    "unit": messages.number("VolumeUsage.Unit", "BYTES"),
                    "used": usage.used,
                    "available": usage.free,
                    "total": usage.used + usage.free,
                }
            ]
        )

    def expand(self, request: Any) -> Any:
        """There is nothing to do: nothing keeps a volume at its size (controller.py)."""
        volume_id = requests.volume_id(request)
        volume = self._at(volume_id, request.volume_path)
        if request.HasField("volume_capability"):
            requests.access(request.volume_capability)
        least, _ = requests.capacity(request, volumes.free_bytes(volume.store))
        return messages.message("NodeExpandVolumeResponse")(capacity_bytes=least or volume.capacity)

    def capabilities(self, _request: Any) -> Any:
        """What of this service there is."""
        kind = "NodeServiceCapability.RPC.Type"
        return messages.message("NodeGetCapabilitiesResponse")(
            capabilities=[{"rpc": {"type": messages.number(kind, name)}} for name in CAPABILITIES]
        )

    def info(self, _request: Any) -> Any:
        """Which node this is."""
        return messages.message("NodeGetInfoResponse")(
            node_id=self._settings.node,
            accessible_topology={"segments": self._settings.topology},
        )

    def _place(self, path: str, what: str) -> Place:
        return targets.place(self._settings.kubelet, path, what)

    def _known(self, volume: Volume | None, volume_id: str) -> Volume:
        """The volume, if there is one that can be used. Refused."""
        if volume is None or not volume.whole:
            raise not_found("there is no such volume on this node")
        if volume.id != volume_id:
            raise Refused(StatusCode.INTERNAL, "the record of this volume is that of another one")
        if volume.ending:
            raise again("the volume is just being put away: try again")
        return volume

    def _check_staged(self, volume: Volume, path: str) -> None:
        if not path:
            raise precondition("the staging target path is missing: stage the volume first")
        staged = volume.targets.get(self._place(path, "staging target path").real)
        if staged is None or not staged.staged or staged.leaving:
            raise precondition(f"the volume is not staged at {path}")

    def _at(self, volume_id: str, path: str) -> Volume:
        """The volume that is staged or published at this path. Refused."""
        if not path:
            raise invalid("the volume path is missing")
        volume = self._records.read(key_of(volume_id))
        if volume is None or not volume.whole:
            raise not_found("there is no such volume on this node")
        try:
            where = self._place(path, "volume path")
        except Refused as refused:
            raise not_found(str(refused)) from None
        if where.real not in volume.targets:
            raise not_found(f"the volume is not at {path}")
        return volume

    def _bind(self, turn: Turn, volume: Volume, where: Place, target: Target) -> None:
        """Mount and bind, or leave nothing behind. Refused."""
        if where.is_gone():
            raise precondition(f"the directory of {where.real} is not there")
        volume = volume.with_target(where.real, target)

        def work() -> None:
            turn.write(volume)
            if where.mount is None:  # what is wrong with it is said before the long part
                with where.opened(make=not target.staged):
                    pass
            mountpoint = self._volumes.mount(turn, volume)
            flags = 0
            for flag in (*target.flags, *(("ro",) if target.read_only else ())):
                flags |= targets.FLAGS[flag]
            targets.bind(mountpoint, where, flags, make=not target.staged)

        try:
            translated(work)
        except BaseException as failure:
            try:
                self._take_back(turn, volume, where, target)
            except Exception as error:
                log.exception("cannot take back the target %s", where.real)
                # Not a final answer: something may be there.
                raise Refused(
                    StatusCode.UNAVAILABLE, f"{failure}; and it cannot be taken back: {error}"
                ) from None
            raise

    def _take_back(self, turn: Turn, volume: Volume, where: Place, target: Target) -> None:
        _unbind(where, target)
        volume = volume.with_target(where.real, None)
        self._write_rest(turn, volume)
        if volume.inline and not volume.targets and not self._volumes.put_away(turn, volume):
            self._volumes.go_on_ending(turn.key)

    def _leave(self, volume_id: str, where: Place) -> None:
        """Unbind a target, and end what ends with it. Refused; nothing is there: fine."""
        key = key_of(volume_id)
        with self._records.turn(key) as turn:
            volume = turn.read()
            if volume is None:
                return
            target = volume.targets.get(where.real)
            if target is not None:
                leaving = volume.with_target(where.real, replace(target, leaving=True))
                translated(lambda: turn.write(leaving))
            ending = volume.ending
        if target is not None:
            # No turn is taken meanwhile: it may last as long as the pod has it busy.
            translated(lambda: _unbind(where, target))
            ending = self._forget_target(key, where)
        if ending and not self._volumes.wait(self._volumes.go_on_ending(key)):
            log.warning("volume %s is held by somebody yet, and is put away later", volume_id)

    def _forget_target(self, key: str, where: Place) -> bool:
        """After it was unbound; whether the volume ends."""
        with self._records.turn(key) as turn:
            volume = turn.read()
            if volume is None:
                return False
            target = volume.targets.get(where.real)
            if target is not None and target.leaving:
                volume = volume.with_target(where.real, None)
                translated(lambda: self._write_rest(turn, volume))
            return volume.inline and not volume.targets

    def _write_rest(self, turn: Turn, volume: Volume) -> None:
        """Write a volume down that has a target less. One without any is not mounted; a pod's own
        ends, and has only to be put away."""
        ending = volume.inline and not volume.targets
        turn.write(replace(volume, ending=ending))
        if not volume.targets and not ending:
            self._volumes.unmount(turn.key)


def _unbind(where: Place, target: Target) -> None:
    targets.unbind(where)
    if not target.staged:  # the directory of a stage is the kubelet's
        where.remove()


def _pod(settings: Configuration, attributes: Any, where: Place) -> str | None:
    """The namespace of the pod that a publish is for; None: nobody has to say. Refused.

    What a pod writes into its volume's attributes could be any namespace. With podInfoOnMount the
    kubelet puts its own words in their place; and the pod's UID, which it says too, is in the path
    that it has made, so that one without the other is found out.
    """
    uid = attributes.get(requests.POD_UID, "")
    namespace = attributes.get(requests.POD_NAMESPACE, "")
    if not settings.pod_info and not uid and not namespace:
        return None
    if not where.pod:
        raise invalid(f"the target path {where.real} is none of a pod's volume")
    if not uid or not namespace:
        raise invalid("nobody says for which pod: say podInfoOnMount: true in the CSIDriver")
    if uid != where.pod:
        raise Refused(
            StatusCode.PERMISSION_DENIED,
            "the attributes name another pod than the target path does: they are not the "
            "kubelet's; say podInfoOnMount: true in the CSIDriver",
        )
    return str(namespace)


def _check_same(volume: Volume, where: Place, target: Target) -> None:
    """Refused if the volume is there already, and not in this way."""
    there = volume.targets.get(where.real)
    if there is None:
        return
    if there.leaving:
        raise again("the volume is just being taken away from this path: try again")
    if not there.is_as(target):
        raise Refused(
            StatusCode.ALREADY_EXISTS,
            f"the volume is at {where.real} already, with another capability or read-only",
        )


def _check_beside(volume: Volume, where: Place, access: Access, target: Target) -> None:
    """Refused if a pod has the volume already, and this one does not go with it."""
    others = [
        other
        for path, other in volume.targets.items()
        if path != where.real and not other.staged and not other.leaving
    ]
    if not others:
        return
    modes = {access.mode, *(other.mode for other in others)}
    if alone := modes & requests.ONE_TARGET:
        raise precondition(f"the volume is published already, and {min(alone)} has one place alone")
    readers = {mode in requests.READERS for mode in modes}
    if len(readers) > 1 and not (target.read_only and all(one.read_only for one in others)):
        raise precondition("the volume is asked for by readers alone, and somebody writes to it")
