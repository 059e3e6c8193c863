"""Samples as Prometheus reads them: its text exposition format, version 0.0.4.

Written by hand: the format is a name, labels and a number on each line, and prometheus-client would
bring a registry of metrics that live in our own process, of which there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from cowfs.observe.sample import Sample

Series = tuple[dict[str, str], float]


class _Metric(NamedTuple):
    """series: the further labels and the values of one sample. counted: by the channel, so that
    there are none where the kernel's overlayfs serves."""

    name: str
    kind: str
    help: str
    series: Callable[[Sample], Iterable[Series]]
    counted: bool = True


def _one(value: Callable[[Sample], float]) -> Callable[[Sample], Iterable[Series]]:
    return lambda sample: [({}, value(sample))]


def _by_request(field: str, divisor: float = 1) -> Callable[[Sample], Iterable[Series]]:
    def series(sample: Sample) -> Iterator[Series]:
        for name in sorted(sample.requests):
            value = sample.requests[name][field]
            yield {"request": name.lower()}, value / divisor if divisor != 1 else value

    return series


def _bytes(sample: Sample) -> Iterator[Series]:
    for direction, backing, word in (
        ("read", "shared", "read_shared"),
        ("read", "private", "read_private"),
        ("written", "private", "written"),
        ("copied", "private", "copied"),
    ):
        yield {"direction": direction, "backing": backing}, sample.tally(word)


def _handles(sample: Sample) -> Iterator[Series]:
    assert sample.counts is not None
    passed = sample.counts["passed"]
    yield {"passthrough": "yes"}, passed
    yield {"passthrough": "no"}, sample.counts["handles"] - passed


def _memory(sample: Sample) -> Iterator[Series]:
    yield {"process": "daemon"}, sample.cost.daemon_memory
    yield {"process": "keeper"}, sample.cost.keeper_memory


_METRICS = (
    _Metric("requests_total", "counter", "Requests of the kernel that came.", _by_request("count")),
    _Metric(
        "request_failures_total",
        "counter",
        "Requests that were answered with an errno.",
        _by_request("errors"),
    ),
    _Metric(
        "requests_answered_by_channel_total",
        "counter",
        "Requests that were answered without Python.",
        _by_request("answered_here"),
    ),
    _Metric(
        "request_seconds_total",
        "counter",
        "Seconds from the read of a request to the write of its reply.",
        _by_request("total_ns", 1e9),
    ),
    _Metric(
        "bytes_total",
        "counter",
        "Bytes that the daemon has read, written or copied: not what is passed through.",
        _bytes,
    ),
    _Metric(
        "copy_ups_total",
        "counter",
        "Regular files that became private.",
        _one(lambda sample: sample.tally("copy_ups")),
    ),
    _Metric(
        "clones_total",
        "counter",
        "Clones that were made of files of the template.",
        _one(lambda sample: sample.tally("clones")),
    ),
    _Metric(
        "clone_seconds_total",
        "counter",
        "Seconds that these clones have taken.",
        _one(lambda sample: sample.tally("clone_ns") / 1e9),
    ),
    _Metric(
        "takeovers_total",
        "counter",
        "How often another daemon went on with the mount.",
        _one(lambda sample: sample.takeovers),
    ),
    _Metric(
        "nodes", "gauge", "Files that the kernel knows.", _one(lambda sample: sample.tally("nodes"))
    ),
    _Metric("open_handles", "gauge", "Files that are open, by how they are read.", _handles),
    _Metric(
        "cpu_seconds_total",
        "counter",
        "Processor time of keeper and daemons.",
        _one(lambda sample: sample.cost.cpu),
        counted=False,
    ),
    _Metric(
        "resident_memory_bytes",
        "gauge",
        "Memory of keeper and daemon, with what they share with others.",
        _memory,
        counted=False,
    ),
)


def lines(samples: Iterable[Sample]) -> Iterator[str]:
    """The exposition of all these mounts, line by line."""
    samples = list(samples)
    for metric in _METRICS:
        name = f"cowfs_{metric.name}"
        yield f"# HELP {name} {metric.help}"
        yield f"# TYPE {name} {metric.kind}"
        for sample in samples:
            if metric.counted and sample.counts is None:
                continue
            for labels, value in metric.series(sample):
                yield f"{name}{{{_labels(sample, labels)}}} {value}"


def _labels(sample: Sample, more: dict[str, str]) -> str:
    record = sample.record
    labels = {"mountpoint": record.mountpoint, "copy": record.copy, **more}
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(value: str) -> str:
    """A label is UTF-8; of a path that is not, the odd bytes are replaced."""
    text = value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
