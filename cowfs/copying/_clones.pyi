"""The typed face of the extension module that clones plain files: many in one call, or one."""

def clone_files(
    source: int,
    target: int,
    names: list[str],
    owner: tuple[int, int],
    dropped: int,
    seal: bool,
    /,
) -> list[str]:
    """Clone files (FICLONE) from one open directory to another: data, owner, mode and times.

    `owner` is the user and group of what this process makes here; `dropped` are the bits of a mode
    that making a file may drop. With `seal` the clones are made immutable, where the filesystem
    can. Returns those of the names that it left alone: what is not a regular file, and what has
    extended attributes. Releases the GIL for each file.

    OSError with the name; FICLONE has EOPNOTSUPP, EXDEV and EINVAL for what cannot be cloned. What
    was made stays.
    """

def clone_file(
    source: int,
    directory: int,
    with_data: bool,
    marks: tuple[tuple[bytes, bytes], ...],
    birth_mark: bytes,
    /,
) -> int:
    """Clone an open file into one without a name, on the filesystem of an open directory.

    Data (unless the clone is to be empty), owner, mode and times; besides, the attributes `marks`
    (name, value), at most four, and as `birth_mark` the birth time where the filesystem tells it
    (8 bytes, little endian, nanoseconds since the epoch). Other extended attributes are the
    caller's to copy. Returns a descriptor that reads and writes. Releases the GIL.

    OSError: ENOSPC, and of FICLONE EOPNOTSUPP, EXDEV and EINVAL; nothing is left then.
    """
