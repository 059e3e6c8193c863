"""The typed face of the extension module that clones many plain files in one call."""

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
