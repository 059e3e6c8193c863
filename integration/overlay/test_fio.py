"""fio writes in a copy with every I/O engine at once, and verifies what it finds there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from integration.command import run
from integration.effort import EFFORT
from integration.mounts import MountCopy
from integration.trees import MIB, tree_state

SIZE = 8 * MIB

ENGINES = {
    "psync": ["--ioengine=psync"],
    "mmap": ["--ioengine=mmap"],
    "libaio": ["--ioengine=libaio", "--iodepth=16", "--direct=1"],
    "io_uring": ["--ioengine=io_uring", "--iodepth=16"],
    "pvsync2": ["--ioengine=pvsync2", "--fsync=64"],
}


@pytest.mark.timeout(100 + 20 * EFFORT)
def test_fio_finds_every_block_that_it_wrote(mount_copy: MountCopy, model: Path) -> None:
    for engine in ENGINES:
        (model / engine).write_bytes(os.urandom(SIZE))
    before = tree_state(model)
    copy = mount_copy(model)
    jobs = []
    for engine, options in ENGINES.items():
        jobs += [f"--name={engine}", f"--filename={copy / engine}", f"--size={SIZE}", *options]
        jobs += ["--rw=randrw", "--bsrange=4k-64k", "--verify=crc32c", "--verify_fatal=1"]
        jobs += [
            "--verify_backlog=256",
            "--verify_state_save=0",
            "--allow_file_create=0",
            f"--loops={EFFORT}",
        ]
    result = run("fio", *jobs, timeout=60 + 20 * EFFORT)
    assert result.stdout.count("err= 0") == len(ENGINES)
    written = tree_state(copy)
    mount_copy.unmount(copy)
    mount_copy(model, copy)
    assert tree_state(copy) == written
    for engine in ENGINES:
        assert written[engine].size == SIZE
        assert written[engine].content != before[engine].content
    assert tree_state(model) == before
