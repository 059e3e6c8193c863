"""The kubelet's registration of plugins, so that no other container has to do it.

The kubelet watches its directory plugins_registry. It calls GetInfo on each socket that appears
there, connects to the endpoint that it is told, and says by NotifyRegistrationStatus what came of
it. It reads the directory again when it is started, so the socket stays as long as we run.
"""

from __future__ import annotations

import logging
from typing import Any

from cowfs.csi import calls, messages

log = logging.getLogger(__name__)

VERSIONS = ["1.12.0", "1.0.0"]


def service(driver: str, endpoint: str) -> Any:
    """Of the driver that listens at this path."""

    def info(_request: Any) -> Any:
        return messages.message("PluginInfo", messages.REGISTRATION)(
            type="CSIPlugin", name=driver, endpoint=endpoint, supported_versions=VERSIONS
        )

    def status(request: Any) -> Any:
        if request.plugin_registered:
            log.info("registered with the kubelet as %s", driver)
        else:
            log.error("the kubelet does not register %s: %s", driver, request.error)
        return messages.message("RegistrationStatusResponse", messages.REGISTRATION)()

    return calls.service(
        "Registration",
        {
            "GetInfo": ("InfoRequest", "PluginInfo", info),
            "NotifyRegistrationStatus": (
                "RegistrationStatus",
                "RegistrationStatusResponse",
                status,
            ),
        },
        messages.REGISTRATION,
    )
