"""The things that are compared, by the names that the report uses."""

from __future__ import annotations

from .base import Peer, View
from .copytools import COPY_TOOLS
from .cowfs import Cowfs
from .fuse import FuseOverlayfs, PassthroughHp, Pyfuse3
from .kernel import Native, Overlayfs, Reflink

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Native(),
        Reflink(),
        Overlayfs(),
        FuseOverlayfs(),
        PassthroughHp(),
        Pyfuse3(),
        Cowfs("cowfs", ""),
        Cowfs("cowfs-off", "passthrough=off"),
        Cowfs("cowfs-overlay", "engine=overlay", is_fuse=False),
        *COPY_TOOLS,
    )
}

__all__ = ["PEERS", "Peer", "View"]
