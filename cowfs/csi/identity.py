"""The service Identity: what this driver is, what it can, and whether it is ready."""

from __future__ import annotations

from typing import Any

from cowfs import __version__
from cowfs.csi import calls, messages


def service(driver: str) -> Any:
    """Of a driver of this name."""

    def info(_request: Any) -> Any:
        return messages.message("GetPluginInfoResponse")(name=driver, vendor_version=__version__)

    def capabilities(_request: Any) -> Any:
        # A volume is on the node that has its source: hence the constraint. Sizes are notes
        # (controller.py), so they can be changed while the volume is in use.
        said: dict[str, list[str]] = {
            "Service": ["CONTROLLER_SERVICE", "VOLUME_ACCESSIBILITY_CONSTRAINTS"],
            "VolumeExpansion": ["ONLINE"],
        }
        fields = {"Service": "service", "VolumeExpansion": "volume_expansion"}
        return messages.message("GetPluginCapabilitiesResponse")(
            capabilities=[
                {fields[kind]: {"type": messages.number(f"PluginCapability.{kind}.Type", name)}}
                for kind, names in said.items()
                for name in names
            ]
        )

    def probe(_request: Any) -> Any:
        return messages.message("ProbeResponse")(ready={"value": True})

    return calls.csi_service(
        "Identity",
        {"GetPluginInfo": info, "GetPluginCapabilities": capabilities, "Probe": probe},
    )
