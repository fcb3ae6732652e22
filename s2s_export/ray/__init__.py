"""Bundles on a Ray cluster: actors for datasets, and a deployment for Ray Serve. Needs the extra `ray`.

    import ray
    from s2s_export.ray import Translate

    lines = ray.data.read_text("lines.txt", num_cpus=0.1)
    actors = ray.data.ActorPoolStrategy(size=4)
    lines = lines.map_batches(Translate, fn_constructor_args=["bundle"], batch_size=64, compute=actors, num_cpus=1)
    lines.write_parquet("translated")

docs/many-machines.md has settings for CPUs, GPUs and clusters that grow.
"""

from __future__ import annotations

from .actors import Transcribe as Transcribe
from .actors import Translate as Translate
from .deployment import application as application
