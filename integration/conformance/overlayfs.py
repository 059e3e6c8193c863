"""Which cases come out differently in a copy that the kernel's overlayfs serves, and where."""

DIFFERENT: dict[str, tuple[str, ...]] = {}
