"""What else the machine did during a measurement, and whether the measurement can be trusted."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SPREAD_LIMIT = 0.15  # largest (third quartile - first) / median of a measurement without a flag
BUSY_LIMIT = 0.05  # largest share of the machine that other processes may take
WAITING_LIMIT = 0.05  # largest share of a call's wall time that it may wait for a core


@dataclass(frozen=True)
class Moment:
    """The time, the busy CPU seconds of the whole machine, and those that a hypervisor took."""

    at: float
    busy: float
    stolen: float

    @classmethod
    def now(cls) -> Moment | None:
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        except OSError:
            return None
        ticks = float(os.sysconf("SC_CLK_TCK"))
        user, nice, system, _, _, irq, softirq, steal = (int(value) / ticks for value in fields[:8])
        return cls(time.perf_counter(), user + nice + system + irq + softirq, steal)


def since(start: Moment | None, own_cpu: float, cores: int) -> dict[str, float] | None:
    """Shares of the machine that other processes and the hypervisor took since `start`. own_cpu: our CPU seconds."""
    end = Moment.now()
    if start is None or end is None or end.at <= start.at:
        return None
    machine = (end.at - start.at) * cores
    others = max(0.0, end.busy - start.busy - own_cpu)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return {"others": others / machine, "stolen": (end.stolen - start.stolen) / machine, "load_average": load}


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99, least and most, with linear interpolation between samples."""
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99), "min": min(values), "max": max(values)}


def spread(values: Sequence[float]) -> float:
    """The distance between the quartiles, divided by the median."""
    first, median, third = np.percentile(values, [25, 50, 75])
    return float((third - first) / median) if median > 0 else 0.0


def flags(calls: Sequence[dict[str, Any]], around: dict[str, float] | None) -> list[str]:
    """Reasons why a measurement may be wrong, in a few words each; empty if there is none."""
    found = []
    if (share := spread([call["wall"] for call in calls])) > SPREAD_LIMIT:
        found.append(f"spread {share:.0%}")
    # The CPU time of a call with one thread that never waits equals its wall time; with more threads it is larger.
    waiting = 1 - float(np.median([call["cpu"] / call["wall"] for call in calls]))
    if waiting > WAITING_LIMIT:
        found.append(f"waited {waiting:.0%}")
    if around and around["others"] > BUSY_LIMIT:
        found.append(f"others {around['others']:.0%}")
    if around and around["stolen"] > BUSY_LIMIT:
        found.append(f"stolen {around['stolen']:.0%}")
    return found
