"""Programs that keep a file open while another one changes it, in a copy and on plain XFS.

Real programs and libraries take turns: processes and connections that stay open, of which some came
before the first writer and some after it. `actors` has the processes, `turns` does each step in a
reflink copy on XFS and in a mounted copy and compares what came of it, and each test file has one
program: what an actor can do with it (`Player`), stories that are told step by step, and
interleavings that hypothesis makes up.

effort.py takes more and other interleavings. COWFS_TURNS_OPTIONS=clone=open,... gives every mount
more options.
"""
