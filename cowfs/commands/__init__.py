"""What a person, mount(8) or umount(8) calls, and all that they are shown.

Knows words, exit codes, what a terminal can show, and where a system keeps helpers, units and man
pages. Does not know how anything is done: it asks the rooms below.
"""

__all__ = ["mounthelper", "program", "umounthelper"]
