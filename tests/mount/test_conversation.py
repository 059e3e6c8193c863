"""The conversation between the processes of a mount, over real socket pairs."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowfs.mount.config import Config
from cowfs.mount.conversation import (
    MAX_ORDER,
    receive_answer,
    receive_order,
    receive_packet,
    send_order,
    send_packet,
)
from cowfs.mount.options import parse

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        yield ours, theirs


def config(lock_fd: int, source: str = "/data/model") -> Config:
    return Config(source, "/mnt/\udcff", "/data/.cowfs", "mnt", lock_fd, parse(["ro,copy=x"]))


def send_config(sock: socket.socket, what: Config) -> None:
    send_order(sock, what.to_json(), what.lock_fd)


def receive_config(sock: socket.socket) -> Config | None:
    order = receive_order(sock)
    return None if order is None else Config.from_json(*order)


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_the_keeper_gets_what_was_sent_and_the_same_lock(pair: Pair, tmp_path: Path) -> None:
    with (tmp_path / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sent = config(lock.fileno())
        send_config(pair[0], sent)
        received = receive_config(pair[1])
    assert received is not None
    assert received == config(received.lock_fd)
    try:
        assert not os.get_inheritable(received.lock_fd)
        # the sender's descriptor is closed, and the lock is held on
        with (tmp_path / "lock").open("wb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(received.lock_fd)


def test_a_config_bigger_than_a_socket_buffer_arrives_whole(pair: Pair) -> None:
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sent = config(0, "/" + "x" * 200_000)
    sender = threading.Thread(target=send_config, args=(pair[0], sent))
    sender.start()
    received = receive_config(pair[1])
    sender.join()
    assert received is not None
    os.close(received.lock_fd)
    assert received.source == sent.source


def test_a_launcher_that_leaves_without_a_word_means_nothing_to_serve(pair: Pair) -> None:
    pair[0].close()
    assert receive_config(pair[1]) is None


@pytest.mark.parametrize("kept", [1, 4, 20])
def test_a_message_cut_short_is_an_error_and_its_descriptor_is_closed(
    pair: Pair, kept: int
) -> None:
    before = open_fds()
    body = config(0).to_json()
    message = struct.pack(">I", len(body)) + body
    socket.send_fds(pair[0], [message[:kept]], [0])
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(EOFError):
        receive_config(pair[1])
    assert open_fds() == before


@pytest.mark.parametrize(
    ("length", "body"),
    [
        (0, b""),
        (MAX_ORDER + 1, b""),
    ],
)
def test_nonsense_is_refused_and_its_descriptor_is_closed(
    pair: Pair, length: int, body: bytes
) -> None:
    before = open_fds()
    socket.send_fds(pair[0], [struct.pack(">I", length) + body], [0])
    with pytest.raises(ValueError, match="an order of"):
        receive_config(pair[1])
    assert open_fds() == before


def test_a_config_without_its_lock_is_refused(pair: Pair) -> None:
    body = config(0).to_json()
    pair[0].sendall(struct.pack(">I", len(body)) + body)
    with pytest.raises(ValueError, match="0 descriptors"):
        receive_config(pair[1])


def test_an_answer_arrives_in_pieces(pair: Pair) -> None:
    line = json.dumps({"ready": True, "pid": 12, "passthrough": False}).encode() + b"\n"

    def dribble() -> None:
        for byte in line:
            pair[1].sendall(bytes([byte]))

    sender = threading.Thread(target=dribble)
    sender.start()
    assert receive_answer(pair[0]) == {"ready": True, "pid": 12, "passthrough": False}
    sender.join()


def test_an_answer_with_odd_bytes_survives(pair: Pair) -> None:
    answer = json.dumps({"error": "cannot open a\udcff\nb", "exit_code": 32})
    pair[1].sendall(answer.encode("ascii") + b"\n")
    assert receive_answer(pair[0]) == {"error": "cannot open a\udcff\nb", "exit_code": 32}


def test_a_keeper_that_dies_gives_no_answer(pair: Pair) -> None:
    pair[1].sendall(b'{"ready": tr')
    pair[1].close()
    assert receive_answer(pair[0]) is None


def test_a_keeper_that_dies_with_our_message_unread_gives_no_answer(pair: Pair) -> None:
    send_config(pair[0], config(0))
    pair[1].close()  # the kernel resets a stream whose data nobody read
    assert receive_answer(pair[0]) is None


def test_an_answer_that_is_no_answer_is_an_error(pair: Pair) -> None:
    pair[1].sendall(b"[]\n")
    with pytest.raises(ValueError, match="the answer was"):
        receive_answer(pair[0])


@pytest.mark.parametrize("text", [b"nope", b"{}", b"[]"])
def test_an_order_of_another_version_is_told_apart(text: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        Config.from_json(text, 0)


@pytest.fixture
def packets() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_packets_arrive_one_by_one_with_their_descriptors(packets: Pair, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("content")
    with kept.open() as file:
        send_packet(packets[0], "put", "gone-upper-17", file.fileno())
    send_packet(packets[0], "pong")
    send_packet(packets[0], "failed", '{"error": "\udcff in a name"}')
    verb, name, fd = receive_packet(packets[1]) or ("", "", None)
    assert (verb, name) == ("put", "gone-upper-17")
    assert fd is not None
    assert os.pread(fd, 7, 0) == b"content"
    assert not os.get_inheritable(fd)
    os.close(fd)
    assert receive_packet(packets[1]) == ("pong", "", None)
    assert receive_packet(packets[1]) == ("failed", '{"error": "\udcff in a name"}', None)


def test_the_end_of_the_other_side_is_no_packet(packets: Pair) -> None:
    with pytest.raises(BlockingIOError):
        receive_packet(packets[1], socket.MSG_DONTWAIT)
    send_packet(packets[0], "bye", "0")
    packets[0].close()
    assert receive_packet(packets[1]) == ("bye", "0", None)
    assert receive_packet(packets[1]) is None


def test_what_the_other_side_said_counts_though_it_ended_with_ours_unread() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs, open(os.devnull) as file:
            send_packet(ours, "ping")
            send_packet(theirs, "put", "a", file.fileno())
            send_packet(theirs, "bye", "0")
        verb, argument, fd = receive_packet(ours, socket.MSG_DONTWAIT) or ("", "", None)
        assert (verb, argument) == ("put", "a")
        assert fd is not None
        os.close(fd)
        assert receive_packet(ours, socket.MSG_DONTWAIT) == ("bye", "0", None)
        assert receive_packet(ours, socket.MSG_DONTWAIT) is None
