"""Medians, ratios and targets out of samples. Pure: no files, no clocks, no printing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from .runner import Outcome
from .workload import Metric, Sample, Target, Value

FORMAT = 1


def column(samples: Sequence[Sample], key: str) -> list[float]:
    """The values of one metric in the order of the rounds."""
    return [sample[key] for sample in samples if key in sample]


def summary(outcome: Outcome) -> dict[str, Any]:
    """One workload as it stands in the JSON file."""
    workload = outcome.workload
    peers: dict[str, Any] = {}
    reference = next((name for name in workload.peers if name in outcome.samples), None)
    for name, samples in outcome.samples.items():
        peers[name] = {
            metric.key: _metric(
                metric, column(samples, metric.key), column(outcome.samples[reference], metric.key)
            )
            for metric in workload.metrics
            if reference is not None and column(samples, metric.key)
        }
    return {
        "name": workload.name,
        "title": workload.title,
        "parameters": outcome.parameters,
        "metrics": [
            {
                "key": metric.key,
                "title": metric.title,
                "unit": metric.unit,
                "higher_is_better": metric.higher_is_better,
            }
            for metric in workload.metrics
        ],
        "reference": reference,
        "peers": peers,
        "missing": outcome.missing,
        "errors": outcome.errors,
        "seconds": outcome.seconds,
        "foreign_cache_drops": outcome.foreign_cache_drops,
    }


def _metric(metric: Metric, values: list[float], reference: list[float]) -> dict[str, Any]:
    return {
        "samples": values,
        "median": median(values),
        "min": min(values),
        "max": max(values),
        "ratio": _speed(metric, median(values), median(reference)) if reference else None,
    }


def _speed(metric: Metric, mine: float, other: float) -> float | None:
    """How fast, or how frugal, in units of the reference: above 1 is better than it."""
    over, under = (mine, other) if metric.higher_is_better else (other, mine)
    return over / under if under else None


def judge(target: Target, workload: Mapping[str, Any]) -> dict[str, Any]:
    """A target beside what was measured; `met` is None where it could not be measured.

    What has a target for later passes is met when that is, too.
    """
    value, spread = _value(target.over, target.under, workload)
    met: bool | None = None
    if value is not None:
        met = (target.at_least is None or value >= target.at_least) and (
            target.at_most is None or value <= target.at_most
        )
    later: dict[str, Any] | None = None
    if target.later:
        again, again_spread = _value(target.later.over, target.later.under, workload)
        later = {"at_least": target.later.at_least, "value": again, "spread": again_spread}
        met = None if met is None or again is None else met and again >= target.later.at_least
    return {
        "workload": workload["name"],
        "what": target.what,
        "against": target.against,
        "at_least": target.at_least,
        "at_most": target.at_most,
        "unit": target.unit,
        "value": value,
        "spread": spread,  # of the single rounds
        "later": later,
        "met": met,
    }


def _value(
    numerator: Value, denominator: Value | None, workload: Mapping[str, Any]
) -> tuple[float | None, list[float] | None]:
    """A quotient of medians, or one median, and the smallest and largest of the single rounds."""
    over = _samples(numerator, workload)
    if denominator is None:
        return (median(over), [min(over), max(over)]) if over else (None, None)
    under = _samples(denominator, workload)
    if not over or not under or not median(under):
        return None, None
    quotients = [a / b for a, b in zip(over, under, strict=False) if b]
    return median(over) / median(under), [min(quotients), max(quotients)] if quotients else None


def _samples(wanted: Value, workload: Mapping[str, Any]) -> list[float] | None:
    found = workload["peers"].get(wanted.peer, {}).get(wanted.metric)
    return found["samples"] if found else None
