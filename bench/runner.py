"""Takes the samples: peers one after another in every round, the order turned from round to round.

So a disturbance of the machine falls on all peers alike, and no peer always runs after the same
other one. A peer that fails is left out of the rest of its workload; the others go on.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

from .environment import Environment
from .peers import PEERS, Peer
from .system import BenchError, patient_teardown, run
from .workload import Sample, Workload


@dataclass
class Outcome:
    """What a workload gave: samples of every peer in the order of the rounds."""

    workload: Workload
    parameters: dict[str, object]
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # not installed here
    errors: dict[str, str] = field(default_factory=dict)  # by peer, or "" for the workload
    seconds: float = 0.0
    foreign_cache_drops: int = 0  # while it ran, by somebody else on the machine


def measure(
    env: Environment,
    workload: Workload,
    peers: Iterable[str],
    progress: Callable[[str], None],
) -> Outcome:
    """Run one workload. Errors of set-up, samples and clean-up are in the outcome."""
    outcome = Outcome(workload, workload.parameters(env))
    wanted = [PEERS[name] for name in workload.peers if name in peers]
    start, drops = time.monotonic(), env.caches.foreign()
    try:
        progress(f"{workload.name}: data")
        workload.prepare(env)
        _rounds(env, outcome, wanted, progress)
    except (BenchError, OSError) as error:
        outcome.errors[""] = one_line(error)
    finally:
        with patient_teardown():
            _clear(env)
    outcome.foreign_cache_drops = env.caches.foreign() - drops
    outcome.seconds = time.monotonic() - start
    return outcome


def _rounds(
    env: Environment, outcome: Outcome, peers: list[Peer], progress: Callable[[str], None]
) -> None:
    takers: dict[str, Callable[[int], Sample]] = {}
    with ExitStack() as stages:
        for peer in peers:
            reason = peer.missing(env)
            if reason:
                outcome.missing[peer.name] = reason
                continue
            progress(f"{outcome.workload.name}: {peer.name}")
            stage = outcome.workload.stage(env, peer)
            try:
                taker = stage.__enter__()
            except (BenchError, OSError) as error:
                outcome.errors[peer.name] = one_line(error)
                continue
            stages.callback(_leave, outcome, peer.name, stage)
            takers[peer.name] = taker
            outcome.samples[peer.name] = []
        for number in range(env.rounds):
            names = list(takers)
            turn = number % max(len(names), 1)
            for name in names[turn:] + names[:turn]:
                progress(f"{outcome.workload.name}: round {number + 1} of {env.rounds}, {name}")
                try:
                    outcome.samples[name].append(takers[name](number))
                except (BenchError, OSError) as error:
                    outcome.errors[name] = one_line(error)
                    del takers[name], outcome.samples[name]
        progress(f"{outcome.workload.name}: clean-up")


def _leave(outcome: Outcome, peer: str, stage: AbstractContextManager[object]) -> None:
    """End a stage; an error of that is noted, so that the stages below it are ended too."""
    try:
        stage.__exit__(None, None, None)
    except (BenchError, OSError) as trouble:
        outcome.errors.setdefault(peer, one_line(trouble))


def _clear(env: Environment) -> None:
    """Free the volume for the next workload: its own data goes, the shared sources stay."""
    for path in env.volume.root.iterdir():
        if path.name not in env.kept:
            shutil.rmtree(path, ignore_errors=True)  # a store's immutable files go with the volume
    env.caches.drop()
    try:
        run(["fstrim", env.volume.root])  # gives the image's freed blocks back to the disk below
    except BenchError:
        pass  # a disk without discard: the image only stays larger until the end


def one_line(error: BaseException) -> str:
    """An error as one line for the report."""
    return (str(error) or type(error).__name__).splitlines()[0]


def show_progress(text: str) -> None:
    """One line that replaces itself, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
