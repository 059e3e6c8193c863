"""Conformance of the system calls, one family a module, in the spirit of the strict public suites.

A case is a function that works in the current directory, which `furniture.furnish` has filled, and
gives plain data. `runner` performs it in a directory of plain XFS and in mounted copies; the data
and the trees afterwards must be equal. What POSIX or Linux fixes, a case asserts besides, so that a
wrong run on XFS cannot hide it.
"""
