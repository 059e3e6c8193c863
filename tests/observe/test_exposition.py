"""Samples as Prometheus reads them."""

from __future__ import annotations

from cowfs.observe import exposition
from cowfs.observe.sample import Cost, Sample
from cowfs.store.runtime import Record

RECORD = Record(
    device="0:99",
    mountpoint='/mnt/\udcff"\\\n',
    source="/data/m",
    store="/data/.cowfs",
    copy="c",
    template="0" * 32,
    daemon_pid=2,
    keeper_pid=1,
    started=0.0,
    options="",
    persistent=True,
)


def sample(**tally: int) -> Sample:
    request = {"count": 4, "errors": 1, "answered_here": 2, "total_ns": 2_500_000_000, "max_ns": 9}
    return Sample(
        RECORD,
        0.0,
        0.0,
        {
            "lives": 3,
            "passthrough": True,
            "files": 1,
            "handles": 5,
            "passed": 2,
            "requests": {"LOOKUP": request},
            "tally": tally,
        },
        Cost(1.5, 10, 20),
    )


def test_numbers_stand_behind_their_labels() -> None:
    label = 'mountpoint="/mnt/\ufffd\\"\\\\\\n",copy="c"'
    lines = list(exposition.lines([sample(read_shared=7, clone_ns=1_000_000)]))
    assert f'cowfs_requests_total{{{label},request="lookup"}} 4' in lines
    assert f'cowfs_request_seconds_total{{{label},request="lookup"}} 2.5' in lines
    assert f'cowfs_bytes_total{{{label},direction="read",backing="shared"}} 7' in lines
    assert f"cowfs_takeovers_total{{{label}}} 2" in lines
    assert f"cowfs_clone_seconds_total{{{label}}} 0.001" in lines
    assert f'cowfs_open_handles{{{label},passthrough="no"}} 3' in lines
    assert f"cowfs_cpu_seconds_total{{{label}}} 1.5" in lines


def test_each_metric_is_told_once_for_all_mounts() -> None:
    lines = list(exposition.lines([sample(), sample()]))
    assert lines.count("# TYPE cowfs_nodes gauge") == 1
    assert len([line for line in lines if line.startswith("cowfs_nodes{")]) == 2


def test_what_overlayfs_serves_has_a_cost_alone() -> None:
    lines = list(exposition.lines([Sample(RECORD, 0.0, 0.0, None, Cost(0.5, 0, 30))]))
    names = {line.partition("{")[0] for line in lines if not line.startswith("#")}
    assert names == {"cowfs_cpu_seconds_total", "cowfs_resident_memory_bytes"}
