"""What serves a copy: cowfs itself through FUSE, or the kernel's overlayfs.

Where FUSE passes files through, reads run at the volume's speed, and the copy has everything that
`docs/semantics.md` promises. Where it does not, overlayfs has that speed and one set of pages, and
the differences to a plain directory are its own. Which of the two a copy has had before makes no
difference: what it keeps on disk is the same.
"""

from __future__ import annotations

from cowfs.mount.options import Options


def prefers_overlayfs(options: Options) -> bool:
    """Whether the copy is to be served by overlayfs, if that can be. Cheap."""
    if options.engine != "auto":
        return options.engine == "overlay"
    return not options.for_fuse and not has_passthrough()


def has_passthrough() -> bool:
    """Whether the kernel's FUSE offers passthrough; False also where there is no FUSE.

    True where it cannot be asked (a sandbox without fsopen(2)): FUSE serves the copy then, as it
    did before there was another engine.
    """
    from cowfs.mount import probes

    try:
        return probes.fuse().has_passthrough
    except OSError as error:
        return error.filename is None  # the device's is given, and no other's
