"""The command line: `python -m bench [OPTIONS] [WORKLOAD...]`.

Exit status 0 whatever the numbers are, 1 if something could not be measured, 2 on a wrong call.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from pathlib import Path
from typing import Any

from . import report, results
from .environment import GIB, Environment, Sizes
from .peers import PEERS
from .probe import Probe
from .requests import request_counter
from .runner import Outcome, measure, one_line, show_progress
from .system import BenchError, describe, end_on_signals, versions
from .volume import ext4_volume, xfs_volume
from .workloads import WORKLOADS

IMAGE_BYTES = 40 * GIB  # sparse


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures cowfs against its peers, all of them in one run.",
        epilog="Workloads: " + ", ".join(WORKLOADS) + ". Peers: " + ", ".join(PEERS) + ".",
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="all when none is named")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it work at all")
    parser.add_argument("--rounds", type=int, metavar="N", help="samples of each peer (default 5)")
    parser.add_argument("--peers", metavar="NAME,...", help="only these peers")
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path("/var/tmp"),  # noqa: S108 - a new directory is made in it
        metavar="DIR",
        help="where the image goes",
    )
    parser.add_argument("--cowfs", metavar="PATH", help="the command to measure")
    given = parser.parse_args()
    for name in given.workloads:
        if name not in WORKLOADS:
            parser.error(f"no workload {name}; there are {', '.join(WORKLOADS)}")
    given.peers = given.peers.split(",") if given.peers else list(PEERS)
    for name in given.peers:
        if name not in PEERS:
            parser.error(f"no peer {name}; there are {', '.join(PEERS)}")
    if given.rounds is not None and given.rounds < 1:
        parser.error("--rounds must be at least 1")
    return given


def main() -> int:
    """Measure, print, write."""
    given = arguments()
    end_on_signals()
    started = datetime.datetime.now(datetime.timezone.utc)
    outcomes: list[Outcome] = []
    head: dict[str, Any] = {
        "format": results.FORMAT,
        "date": started.isoformat(timespec="seconds"),
        "machine": describe(),
        "versions": versions(),
        "quick": given.quick,
        "rounds": given.rounds or (2 if given.quick else 5),
    }
    try:
        _measure_all(given, head, outcomes)
    except KeyboardInterrupt:
        show_progress("")
        print("interrupted; everything is unmounted", file=sys.stderr)
        return 130
    except (BenchError, OSError) as error:
        show_progress("")
        print(f"bench: {one_line(error)}", file=sys.stderr)
        return 1
    workloads = [results.summary(outcome) for outcome in outcomes]
    result = head | {
        "workloads": workloads,
        "targets": [
            results.judge(target, workload)
            for outcome, workload in zip(outcomes, workloads, strict=True)
            for target in (*outcome.workload.targets, *outcome.workload.overlay_targets())
        ],
    }
    report.show(result)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if any(outcome.errors for outcome in outcomes) else 0


def _measure_all(given: argparse.Namespace, head: dict[str, Any], outcomes: list[Outcome]) -> None:
    cowfs = given.cowfs or str(Path(sys.executable).with_name("cowfs"))
    with (
        xfs_volume(given.dir.resolve(), IMAGE_BYTES) as volume,
        ext4_volume(volume.work, IMAGE_BYTES) as outside,
        request_counter(volume.work) as requests,
    ):
        head["volume"] = {
            "filesystem": "xfs",
            "image_bytes": volume.image_bytes,
            "direct_io": volume.direct_io,
        }
        head["request_counter"] = requests.available
        env = Environment(
            volume=volume,
            outside=outside,
            probe=Probe(volume.work),
            requests=requests,
            sizes=Sizes.quick() if given.quick else Sizes.full(),
            rounds=head["rounds"],
            quick=given.quick,
            cowfs=[os.path.realpath(cowfs) if os.sep in cowfs else cowfs],
        )
        outcomes.extend(
            measure(env, WORKLOADS[name], given.peers, show_progress)
            for name in given.workloads or WORKLOADS
        )
        show_progress("")


if __name__ == "__main__":
    sys.exit(main())
