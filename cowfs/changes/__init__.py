"""What a copy shows and what is changed in it, read from its layers on disk.

Knows how template and upper layer make one tree, what differs between two such trees, and what is
made of that: a list, a plain directory, a layer of an image, a copy without some of its changes.
Does not look into mounts, but for having them write out what they still hold.
"""

__all__ = ["committing", "diff", "resetting", "sides"]
