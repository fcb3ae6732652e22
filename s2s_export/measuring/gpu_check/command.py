"""The command line of scripts/gpu_check."""

from __future__ import annotations

import argparse
import datetime
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ... import bundle
from ...runtime.cores import available_cores
from ...runtime.cuda import driver as memory
from .. import machine
from . import compiling, plan, report, run, targets

CORES_TO_COMPILE = 8  # with fewer, compiling beside the parts would slow down what they measure
MINUTES = 8.5  # below ten, after which many job systems stop a command


def main(arguments: Sequence[str] | None = None, call: run.Call = run.in_child) -> int:
    """call: runs a part; tests run parts in this process."""
    parser = argparse.ArgumentParser(prog="scripts/gpu_check", description="Checks and measures on this machine's GPU.")
    parser.add_argument("folder", type=Path, help="where results go")
    parser.add_argument("bundles", type=Path, nargs="*", help="bundles to check; random models by default")
    parser.add_argument("--targets", help="targets to build, by comma; by default all that suit this GPU")
    parser.add_argument("--only", help="parts to run, by comma: search, torch, speed, ...; what they need runs too")
    parser.add_argument("--models", help="which of the random models, by comma: opus-mt, t5-small")
    parser.add_argument("--quick", action="store_true", help="small models, few rounds: does it work?")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"after which it ends; {MINUTES:g} by default")
    given = parser.parse_args(arguments)
    if (reason := memory.unavailable()) is not None:
        print(f"gpu_check: {reason}; nothing was checked", file=sys.stderr)
        return 1
    device = memory.device()
    chosen = given.targets.split(",") if given.targets else targets.suiting(device.capability)
    given.folder.mkdir(parents=True, exist_ok=True)
    line = shlex.join(["scripts/gpu_check", *(sys.argv[1:] if arguments is None else arguments)])
    result = head(device, line)
    with tempfile.TemporaryDirectory(prefix="s2s-gpu-check-") as scratch:
        models = [_of_user(path, Path(scratch)) for path in given.bundles] or _chosen(
            plan.random_models(Path(scratch)), given.models
        )
        parts = plan.parts(models, chosen, device.capability, given.folder, quick=given.quick)
        parts = plan.only(parts, given.only.split(",")) if given.only else parts
        compiles = call is run.in_child and available_cores() >= CORES_TO_COMPILE
        with compiling.begun(device.capability, device.cuda_release) if compiles else nullcontext():
            run.run(parts, result, given.folder, given.minutes, call)
    print((given.folder / report.TABLE).read_text())
    return 1 if any(part["state"] == plan.FAILED for part in result["parts"]) else 0


def head(device: memory.Device, command: str) -> dict[str, Any]:
    """Where and how the results were measured."""
    described = machine.describe()
    return {
        "format": "s2s-gpu-check",
        "format_version": 1,
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": described["machine"],
        "packages": described["packages"],
        "backends": described["backends"],
        "gpu": {"name": device.name, "compute_capability": device.capability, "cuda": device.cuda_version},
        "parts": [],
    }


def _chosen(models: list[plan.Model], names: str | None) -> list[plan.Model]:
    return [model for model in models if names is None or model.name in names.split(",")]


def _of_user(path: Path, folder: Path) -> plan.Model:
    """A copy of a user's bundle, so that building engines does not change the original."""
    bundle.read(path)
    shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("engines"))
    return plan.Model(path.name, folder / path.name)
