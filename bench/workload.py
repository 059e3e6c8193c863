"""What a workload is: the thing that is done, with whom, what is measured, what is aimed at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from .environment import Environment
from .peers import Peer

Sample = dict[str, float]  # metric key to value; a metric that cannot be told here is left out


@dataclass(frozen=True)
class Metric:
    """One number of a sample, in seconds, bytes or a plain count as `unit` says."""

    key: str
    title: str
    unit: str  # "s", "B", "IO/s", "files/s", "requests"
    higher_is_better: bool = False


@dataclass(frozen=True)
class Value:
    """The median of one metric of one peer."""

    peer: str
    metric: str


@dataclass(frozen=True)
class Later:
    """What a target wants of the passes after the first one: a quotient of two medians."""

    over: Value
    under: Value
    at_least: float


@dataclass(frozen=True)
class Target:
    """A row of the targets: the quotient of two medians, or one median, and its limit."""

    what: str
    against: str
    over: Value
    under: Value | None = None
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""  # of a target without `under`
    later: Later | None = None


class Workload(ABC):
    """One subject of measurement."""

    name: str
    title: str
    metrics: tuple[Metric, ...]
    peers: tuple[str, ...]  # the first is what ratios are shown against
    targets: tuple[Target, ...] = ()

    @abstractmethod
    def parameters(self, env: Environment) -> dict[str, object]:
        """What the JSON says about sizes."""

    @abstractmethod
    def prepare(self, env: Environment) -> None:
        """Make the data. Called once, before any peer is set up."""

    @abstractmethod
    def stage(
        self, env: Environment, peer: Peer
    ) -> AbstractContextManager[Callable[[int], Sample]]:
        """Set a peer up for the whole workload; what is yielded takes the sample of a round."""

    def speed(
        self,
        what: str,
        metric: str,
        peer: str,
        reference: str,
        at_least: float,
        later: tuple[str, float] | None = None,
    ) -> Target:
        """A target on how fast `peer` is in units of how fast `reference` is.

        `later`: metric and limit of the passes after the first one.
        """
        over, under = self._order(metric, peer, reference)
        after = Later(*self._order(later[0], peer, reference), later[1]) if later else None
        return Target(what, reference, over, under, at_least=at_least, later=after)

    def _order(self, metric: str, peer: str, reference: str) -> tuple[Value, Value]:
        mine, other = Value(peer, metric), Value(reference, metric)
        higher = next(m.higher_is_better for m in self.metrics if m.key == metric)
        return (mine, other) if higher else (other, mine)

    def overlay_targets(self) -> Iterator[Target]:
        """Each of its rows by overlayfs: cowfs adds nothing to a mount that was made by hand."""
        if {"overlayfs", "cowfs-overlay"} <= set(self.peers):
            for metric in self.metrics:
                if metric.unit in ("s", "IO/s", "files/s", "dirs/s") and metric.key != "ready":
                    what = f"engine=overlay: {self.title}, {metric.title}"
                    yield self.speed(what, metric.key, "cowfs-overlay", "overlayfs", 0.97)
