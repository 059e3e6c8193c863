"""Which files are known to be changed in place, by their first bytes or by their names."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from cowfs.overlay.inplace import HEAD_SIZE, HEADERS, InPlace


def head(path: Path) -> bytes:
    return path.read_bytes()[:HEAD_SIZE]


def test_a_database_of_sqlite_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    connection = sqlite3.connect(path)
    connection.execute("create table t (a)")
    connection.commit()
    connection.close()
    assert InPlace().is_known(b"weights", head(path))


@pytest.mark.parametrize(("program", "offset", "magic"), HEADERS)
def test_a_header_counts_at_its_place_alone(program: str, offset: int, magic: bytes) -> None:
    at_its_place = bytes(offset) + magic
    assert InPlace().is_known(b"x", at_its_place.ljust(HEAD_SIZE, b"\0"))
    assert not InPlace().is_known(b"x", b"\1" + at_its_place[: HEAD_SIZE - 1])
    assert not InPlace().is_known(b"x", at_its_place[:-1])


@pytest.mark.parametrize(
    "name",
    [b"train.log", b"events.out.tfevents.1700000000.node", b"db-wal", b"a.sqlite3", b"\xff.log"],
)
def test_logs_and_journals_are_known_by_their_names(name: bytes) -> None:
    assert InPlace().is_known(name, b"")


@pytest.mark.parametrize(
    "name",
    [
        *(b"model-00001-of-00030.safetensors", b"pytorch_model.bin", b"weights.npy", b"x.gguf"),
        *(b"model.h5", b"tokenizer.json", b"data.parquet", b"log", b"login", b"train.log.1"),
    ],
)
@pytest.mark.parametrize("start", [b"", b"\x93NUMPY", b"\x89HDF\r\n\x1a\n", b"GGUF", bytes(64)])
def test_weights_stay_shared(name: bytes, start: bytes) -> None:
    assert not InPlace().is_known(name, start)


def test_patterns_of_the_user_add_to_the_list() -> None:
    known = InPlace(["*.h5", "shard-[0-9]"])
    assert known.is_known(b"model.h5", b"")
    assert known.is_known(b"shard-7", b"")
    assert known.is_known(b"train.log", b"")
    assert not known.is_known(b"shard-77", b"")
