"""python -m integration.kernels all | NAME...    the checks on these kernels, one after the other

Names: 5.10 5.15 6.1 6.8 6.12 newest. --groups=NAME,NAME,... does only these groups of checks,
--ways=passthrough,relayed,overlay only these ways of serving a copy;
--cases='PATTERN,...' only these cases of `compare`, such as 'acls-*,opening-o_tmpfile*'.
At the end it prints a table of all groups on all of these kernels, in Markdown. Exit code 0:
everything is as it should be. Needs root (a tree is mounted), qemu-system-x86, and what ./test.sh
installs besides.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from integration.kernels.distributions import DISTRIBUTIONS
from integration.kernels.matrix import Outcome, try_kernel
from integration.kernels.table import table
from integration.machine import build_package


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m integration.kernels")
    parser.add_argument("names", nargs="+", choices=[*DISTRIBUTIONS, "all"], metavar="NAME")
    parser.add_argument("--groups", type=lambda text: tuple(text.split(",")), default=())
    parser.add_argument("--ways", type=lambda text: tuple(text.split(",")), default=())
    parser.add_argument("--cases", type=lambda text: tuple(text.split(",")), default=("*",))
    arguments = parser.parse_args()
    names = list(DISTRIBUTIONS) if "all" in arguments.names else arguments.names
    directory = Path(tempfile.mkdtemp(prefix="cowfs-kernels-", dir="/var/tmp"))
    try:
        package = build_package(directory / "package")
        update = build_package(directory / "update", "99.0")
        outcomes = {}
        for name in names:
            print(f"== {name}: {DISTRIBUTIONS[name].title}", flush=True)
            outcomes[name] = try_kernel(
                name,
                package,
                update,
                directory / name,
                groups=arguments.groups,
                ways=arguments.ways,
                cases=arguments.cases,
                tell=_tell,
            )
            shutil.rmtree(directory / name)
            _summarize(name, outcomes[name])
    finally:
        shutil.rmtree(directory)
    if len(outcomes) > 1:
        print("== all", flush=True)
        for name, outcome in outcomes.items():
            _summarize(name, outcome)
    print(
        table(
            {name: outcome.verdicts for name, outcome in outcomes.items()},
            {name: outcome.seconds for name, outcome in outcomes.items()},
        )
    )
    sys.exit(any(outcome.faults for outcome in outcomes.values()))


def _tell(check: str, seconds: float, why: str | None) -> None:
    if why is None:
        print(f"ok    {seconds:6.1f} s  {check}", flush=True)
    else:
        print(f"fails {seconds:6.1f} s  {check}\n{_indented(why)}", flush=True)


def _summarize(name: str, outcome: Outcome) -> None:
    known = [verdict for verdict in outcome.verdicts if verdict.known]
    good = len(outcome.verdicts) - len(known) - len(outcome.faults)
    print(
        f"{name}: Linux {outcome.release}, {good} checks ok, {len(known)} differ as known, "
        f"{len(outcome.faults)} faults, {outcome.seconds:.0f} s",
        flush=True,
    )
    for verdict in outcome.faults:
        print(f"  FAIL {verdict.check}\n{_indented(verdict.why or '')}", flush=True)


def _indented(text: str) -> str:
    return "\n".join(f"         {line}" for line in text.splitlines())


if __name__ == "__main__":
    main()
