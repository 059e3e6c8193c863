"""A look-alike of the kubelet: it starts the driver, and calls it in the order and way of a node.

Its directory, the driver's state and its configuration lie below one directory of the session. What
the driver has to leave behind when all volumes are gone is nothing, and `nothing_is_left` says so.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import grpc

from cowfs.csi import messages
from integration import kernel
from integration.command import COWFS

DRIVER = "csi.cowfs"
#: The kubelet's own for one call.
SECONDS = 120.0
#: After these it asks again; after any other error it takes the volume for not mounted.
NOT_FINAL = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
}
_SERVICES = {
    "Identity": {"GetPluginInfo", "GetPluginCapabilities", "Probe"},
    "Controller": {
        "CreateVolume",
        "DeleteVolume",
        "ValidateVolumeCapabilities",
        "ListVolumes",
        "GetCapacity",
        "ControllerGetCapabilities",
        "ControllerExpandVolume",
    },
}


def capability(mode: str = "SINGLE_NODE_MULTI_WRITER", *flags: str) -> dict[str, Any]:
    """To mount a volume and use it in this way."""
    number = messages.number("VolumeCapability.AccessMode.Mode", mode)
    return {"mount": {"mount_flags": flags}, "access_mode": {"mode": number}}


class Kubelet:
    """One node: its directory, the driver's process, and a client of that."""

    def __init__(self, directory: Path, roots: Iterable[Path], store: Path) -> None:
        self.directory = directory
        self.root = directory / "kubelet"
        self.state = directory / "state"
        self.configuration = directory / "csi.json"
        self.log = directory / "log"
        self.socket = directory / "csi.sock"
        for name in ("pods", "plugins_registry"):
            (self.root / name).mkdir(parents=True)
        self.store = store
        self.settings: dict[str, Any] = {
            "roots": list(map(str, roots)),
            "sources": {"*": {"namespaces": ["default", "team-*"]}},
            "store": str(store),
        }
        self.process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None

    def configure(self, **changes: Any) -> None:
        """Write the driver's configuration, with these differences."""
        self.configuration.write_text(json.dumps(self.settings | changes))

    def start(self) -> None:
        """Start the driver and wait until it registers, as the kubelet sees it do."""
        if not self.configuration.exists():
            self.configure()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(COWFS, "csi", "--endpoint", self.socket, "--kubelet", self.root),
                    *("--state", self.state, "--configuration", self.configuration),
                    *("--node", "node-1"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        registry = self.root / "plugins_registry" / f"{DRIVER}-reg.sock"
        info = self._when_it_answers(registry)
        assert (info.type, info.name, info.endpoint) == ("CSIPlugin", DRIVER, str(self.socket))
        assert "1.12.0" in info.supported_versions
        assert self.socket.stat().st_mode & 0o777 == 0o600
        self._channel = grpc.insecure_channel(f"unix:{self.socket}")
        assert self("GetPluginInfo").name == DRIVER
        self._register(registry, "NotifyRegistrationStatus", plugin_registered=True)

    def _when_it_answers(self, registry: Path) -> Any:
        for _ in range(600):
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            try:
                return self._register(registry, "GetInfo")
            except grpc.RpcError:
                time.sleep(0.05)
        raise AssertionError(f"the driver does not answer: {self.log.read_text()}")

    def _register(self, registry: Path, method: str, **fields: Any) -> Any:
        types = {
            "GetInfo": ("InfoRequest", "PluginInfo"),
            "NotifyRegistrationStatus": ("RegistrationStatus", "RegistrationStatusResponse"),
        }
        request, answer = (messages.message(name, "pluginregistration") for name in types[method])
        with grpc.insecure_channel(f"unix:{registry}") as channel:
            call = channel.unary_unary(
                f"/pluginregistration.Registration/{method}",
                request_serializer=request.SerializeToString,
                response_deserializer=answer.FromString,
            )
            return call(request(**fields), timeout=SECONDS)

    def kill(self) -> None:
        """SIGKILL for the driver and no other process."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM; it ends in order."""
        assert self._end(signal.SIGTERM) == 0

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self.process.send_signal(number)
        code = self.process.wait(timeout=60)
        self.process = None
        return code

    def __call__(self, method: str, **fields: Any) -> Any:
        """The answer to a call. grpc.RpcError."""
        return self.begin(method, **fields).result()

    def begin(self, method: str, **fields: Any) -> Any:
        """The same, not waited for."""
        service = next((name for name, known in _SERVICES.items() if method in known), "Node")
        assert self._channel is not None
        request = messages.message(f"{method}Request")
        call = self._channel.unary_unary(
            f"/csi.v1.{service}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=messages.message(f"{method}Response").FromString,
        )
        return call.future(request(**fields), timeout=SECONDS)

    def refused(self, method: str, **fields: Any) -> tuple[str, str]:
        """The code and sentence of a call that must fail."""
        try:
            answer = self(method, **fields)
        except grpc.RpcError as error:
            sentence = str(error.details())
            assert sentence
            assert "\n" not in sentence
            assert "this is a bug" not in sentence, self.log.read_text()
            return error.code().name, sentence
        raise AssertionError(f"{method} answered {answer}")

    # --- as the kubelet does for a pod ------------------------------------------------------------

    def target(self, pod: str, volume: str = "model") -> Path:
        """Where a pod's volume goes; the directory that holds it is made."""
        path = self.root / "pods" / pod / "volumes/kubernetes.io~csi" / volume / "mount"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def staging(self, volume: str) -> Path:
        """Where a persistent volume is staged; it is made."""
        name = messages.CSI + "-" + volume[-16:].replace("/", "-")
        path = self.root / "plugins/kubernetes.io/csi" / DRIVER / name / "globalmount"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def context(self, pod: str, *, inline: bool, **attributes: str) -> dict[str, str]:
        """What the kubelet says of a pod where the CSIDriver has podInfoOnMount."""
        return attributes | {
            "csi.storage.k8s.io/pod.name": "a-pod",
            "csi.storage.k8s.io/pod.namespace": "default",
            "csi.storage.k8s.io/pod.uid": pod,
            "csi.storage.k8s.io/serviceAccount.name": "default",
            "csi.storage.k8s.io/ephemeral": "true" if inline else "false",
        }

    def inline(self, pod: str, source: str = "model", **changes: Any) -> dict[str, Any]:
        """The fields of a publish of a pod's own volume."""
        return {
            "volume_id": f"csi-{pod}",
            "target_path": str(self.target(pod)),
            "volume_capability": capability(),
            "volume_context": self.context(pod, inline=True, source=source),
        } | changes

    def persistent(self, volume: Any, pod: str, **changes: Any) -> dict[str, Any]:
        """The fields of a publish of a persistent volume."""
        return {
            "volume_id": volume.volume_id,
            "staging_target_path": str(self.staging(volume.volume_id)),
            "target_path": str(self.target(pod)),
            "volume_capability": capability(),
            "volume_context": self.context(pod, inline=False, **volume.volume_context),
        } | changes

    def create(self, name: str = "pvc-1", **changes: Any) -> Any:
        """A persistent volume, made."""
        fields = {
            "name": name,
            "parameters": {"source": "model"},
            "volume_capabilities": [capability()],
        }
        return self("CreateVolume", **(fields | changes)).volume

    def unpublish(self, pod: str, volume_id: str = "") -> None:
        """Take a pod's volume away, and its directory as the kubelet does."""
        target = self.target(pod)
        self("NodeUnpublishVolume", volume_id=volume_id or f"csi-{pod}", target_path=str(target))
        assert not target.exists()
        target.parent.rmdir()

    # --- what there is ----------------------------------------------------------------------------

    def mounts(self) -> list[str]:
        """Everything that is mounted below our directory."""
        below = f"{self.directory}/"
        return [one.mountpoint for one in kernel.mounts() if one.mountpoint.startswith(below)]

    def records(self) -> list[Path]:
        """Of volumes."""
        return sorted((self.state / "volumes").glob("[!.]*"))

    def copies(self) -> list[str]:
        """In the store."""
        return sorted(os.listdir(self.store / "copies")) if self.store.exists() else []

    def left(self) -> list[str]:
        """What volumes have left behind, of every kind."""
        return [
            *(f"mounted: {path}" for path in self.mounts()),
            *(f"record: {path}" for path in self.records()),
            *(f"copy: {name}" for name in self.copies()),
            *(f"directory: {path}" for path in (self.state / "mounts").glob("*")),
            *(f"turn: {path}" for path in (self.state / "turns").glob("*")),
            *(f"target: {path}" for path in self.root.glob("pods/*/volumes/*/*/mount")),
        ]

    def nothing_is_left(self, patience: float = 30) -> None:
        """As soon as what is being put away is put away."""
        deadline = time.monotonic() + patience
        while (left := self.left()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, "\n".join([*left, self.log.read_text()])

    def clean_up(self) -> None:
        """End the driver, and unmount whatever a failed test has left."""
        if self.process is not None:
            self.kill()
        for path in reversed(self.mounts()):
            subprocess.run(["umount", "-i", "-l", path], check=False)


def volume_of(fields: Mapping[str, Any]) -> Path:
    """Where a publish with these fields puts the volume."""
    return Path(fields["target_path"])
