"""Copies as volumes of Kubernetes: the CSI driver `cowfs csi`.

Knows the protocol, which pod may have which source, where a volume is mounted, and what is written
down so that each call can be repeated and cut off. What a copy is and how it is served, the rooms
below know: a volume is a kept copy with one mount, and each target a bind mount of that.
"""

__all__ = ["plugin"]
