"""What else the machine did while something was measured, and whether a measurement can be believed."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SPREAD_LIMIT = 0.15  # (third quartile - first) / median beyond which a measurement is flagged
BUSY_LIMIT = 0.05  # share of the machine taken by others
WAITING_LIMIT = 0.05  # share of its wall time that a call spent without a core


@dataclass(frozen=True)
class Moment:
    """Clock, busy CPU seconds of the whole machine, and of it what a hypervisor took."""

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
    """Shares of the machine that other processes and the hypervisor took since `start`; own_cpu: our own seconds."""
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
    """Between the quartiles, as a share of the median."""
    first, median, third = np.percentile(values, [25, 50, 75])
    return float((third - first) / median) if median > 0 else 0.0


def flags(calls: Sequence[dict[str, Any]], around: dict[str, float] | None) -> list[str]:
    """Why a measurement may be off, each in a few words; empty where nothing speaks against it."""
    found = []
    if (share := spread([call["wall"] for call in calls])) > SPREAD_LIMIT:
        found.append(f"spread {share:.0%}")
    # A call with one thread that never waits has as much CPU time as wall time; more threads have more.
    waiting = 1 - float(np.median([call["cpu"] / call["wall"] for call in calls]))
    if waiting > WAITING_LIMIT:
        found.append(f"waited {waiting:.0%}")
    if around and around["others"] > BUSY_LIMIT:
        found.append(f"others {around['others']:.0%}")
    if around and around["stolen"] > BUSY_LIMIT:
        found.append(f"stolen {around['stolen']:.0%}")
    return found
