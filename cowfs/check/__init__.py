"""Whether copies and templates are what they should be, and repairs.

Knows every rule of docs/on-disk-format.md. Looks at what nobody serves; does not look into mounts.
"""

__all__ = ["examine", "findings"]
