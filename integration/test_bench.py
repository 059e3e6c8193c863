"""The benchmark runs, measures with the installed command, and writes what it says it writes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from integration.command import run

REPOSITORY = Path(__file__).parent.parent


def test_a_quick_run_measures_cowfs_and_writes_samples_medians_and_targets(tmp_path: Path) -> None:
    written = tmp_path / "result.json"
    workloads = ["seqread", "firstwrite", "mount", "coldwalked", "walk", "lookup"]
    done = run(
        *(sys.executable, "-m", "bench", "--quick", "--rounds", "3"),
        *("--dir", tmp_path, "--peers", "native,reflink,overlayfs,cowfs", "--json", written),
        *workloads,
        check=False,
        timeout=180,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(written.read_text())

    assert result["format"] == 1
    assert result["quick"] is True
    assert result["rounds"] == 3
    assert {"cpu", "cores", "memory_bytes", "kernel"} <= result["machine"].keys()
    assert [workload["name"] for workload in result["workloads"]] == workloads
    for workload in result["workloads"]:
        assert workload["errors"] == {}
        for metric in workload["metrics"]:
            found = workload["peers"]["cowfs"].get(metric["key"])
            if found is None:  # a kernel without the tracepoint cannot tell requests
                assert metric["unit"] == "requests"
                assert not result["request_counter"]
                continue
            assert len(found["samples"]) == 3
            assert found["min"] <= found["median"] <= found["max"]
    assert all({"what", "value", "met"} <= target.keys() for target in result["targets"])
    read = next(target for target in result["targets"] if target["workload"] == "seqread")
    assert read["later"]["value"] > 0
    assert "Targets" in done.stdout
    assert list(tmp_path.iterdir()) == [written]


@pytest.mark.parametrize("workload", ["seqread", "mmap", "coldread", "readers", "willneed"])
def test_what_a_daemon_does_itself_is_measured_with_what_it_costs(
    tmp_path: Path, workload: str
) -> None:
    written = tmp_path / "result.json"
    peers = ["native", "cowfs-off"]
    done = run(
        *(sys.executable, "-m", "bench", "--quick", "--rounds", "1", "--dir", tmp_path),
        *("--peers", ",".join(peers), "--json", written, workload),
        check=False,
        timeout=120,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = json.loads(written.read_text())["workloads"]
    assert result["errors"] == {}
    measured = {metric["key"] for metric in result["metrics"]}
    assert result["peers"]["cowfs-off"].keys() == measured
    assert result["peers"]["native"].keys() == measured - {"cpu"}


def test_a_peer_that_fails_is_named_and_ends_the_run_with_status_1(tmp_path: Path) -> None:
    done = run(
        *(sys.executable, "-m", "bench", "--quick", "--rounds", "1", "--dir", tmp_path),
        *("--peers", "native,cowfs", "--cowfs", "/bin/false", "seqread"),
        check=False,
        timeout=120,
        cwd=REPOSITORY,
    )
    assert done.returncode == 1
    assert "Could not be measured" in done.stdout
    assert "native" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "bench", "--dir", tmp_path, "--peers", "native,cowfs", "lookup"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        end = time.monotonic() + 60
        while not list(tmp_path.glob("*/cowfs-*")) and time.monotonic() < end:
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=120)
    assert running.returncode == 130, said
    assert list(tmp_path.iterdir()) == []
