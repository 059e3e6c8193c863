"""What the kernel offers and Python does not, marks on disk, errors, and small helpers.

Knows nothing of the other rooms, and each module here little of its neighbours.
"""

__all__ = [
    "descriptors",
    "directories",
    "errors",
    "inherited",
    "interrupts",
    "jsonfile",
    "mountinfo",
    "nearby",
    "ondisk",
    "processes",
    "remedy",
    "shown",
    "syscalls",
    "writeback",
]
