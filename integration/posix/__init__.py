"""What POSIX and Linux say of each family of calls, as cases that run below any directory.

A case does calls below a directory that `objects.make` has filled, and notes what came of each: a
plain value, or the name of the errno. The notes of a run on XFS are what a copy has to match; what
POSIX fixes is asserted in the case itself, by `Notes.expect`. Knows nothing about cowfs.

These are the cross products: every kind of object with every flag, mode, caller and place. What
each call promises, told one by one, is in integration/conformance.
"""
