"""The passes that rewrite a bundle's graphs into operators of our own: nothing that they could take is left."""

from __future__ import annotations

import pytest
import tiny_models

from s2s_export import bundle as bundles
from s2s_export import recipes
from s2s_export.building.builders import cpu

# An expert's rows are chosen at run time, and T5Gemma's attention is of no kind that a kernel computes.
WHOLE = [name for name in tiny_models.CONFIGS if not name.startswith(("switch_transformers", "t5gemma"))]
TRANSFORMED_HEADS = ("bert-bert", "xlmr-roberta")  # a product and an activation before the output projection


@pytest.mark.parametrize("name", WHOLE)
def test_every_family_is_rewritten_whole(exported, name):
    bundle = bundles.read(exported(name)[1])
    graphs, passes, _ = cpu.rewrite(bundle, recipes.load("cpu-int8"), own=True)
    layers = bundle.manifest["sizes"]["decoder_layers"]
    counts = {done.name: done.count for done in passes["decoder_step"]}
    assert counts["attention over the cache"] == counts["attention over the source"] == layers
    assert counts["output projection with candidates"] == counts["packed embeddings"] == 1
    assert counts["a position and a place for each source"] == 1
    more = int(name in TRANSFORMED_HEADS)
    assert counts["packed products"] == 6 * layers + more
    assert counts["fused residuals"] == counts["fused norms"] == 3 * layers
    encoder = {done.name: done.count for done in passes["encoder"]}
    assert encoder["fused residuals"] == encoder["fused norms"] == 2 * bundle.manifest["sizes"]["encoder_layers"]
    # Summed blocks of tokens are keys that are no part of the rows.
    whole = bundle.manifest["sizes"]["encoder_layers"] if "global" not in name else 0
    assert encoder["attention of the encoder"] == whole
    is_gated = "gated" in name or name in ("mt5", "umt5", "umt5-tied")
    assert counts["fused activations"] == (0 if is_gated and name != "umt5-tied" else layers + more)
    left = {node.op_type for graph in graphs.values() for node in graph.nodes}
    assert not left & {"Gemm", "LogSoftmax", "TopK", "BeamSelfAttention"}
    assert not left & {"LayerNormalization", "RMSNormalization", "Gelu"}
