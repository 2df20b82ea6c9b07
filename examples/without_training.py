"""Neurons and attention: a graph of the model's own neurons, and why a head looked where it did; nothing is trained.

    python examples/without_training.py [DIRECTORY]

Pictures are written to the directory, by default a temporary one.
"""

import sys
import tempfile
from pathlib import Path

from open_clt import OpenCrossLayerTranscoder, explain_attention, visualize_attribution_graph
from open_clt.visualization.graph.attention import visualize_attention

directory = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp())

clt = OpenCrossLayerTranscoder("embedded", transcoder="neurons")  # any model that OpenCLT reads, such as "gpt2"
prompt = "When Simon and Eva went to the restaurant, Simon gave a basket to"
graph = clt.attribute(prompt, max_feature_nodes=512)  # the most influential neurons; the others count as errors
print(f"{len(graph.nodes.features()):,} neurons, {graph.scores()}")
visualize_attribution_graph(graph.prune(0.5), max_nodes=20, save_path=directory / "neurons.png")

# Why does head 1.2 look from the last token at the second "Simon" (10) rather than at "Eva" (4)?
why = explain_attention(clt.language_model, "neurons", prompt, layer=1, head=2, query=-1, key=10, versus=4)
print(why.summary(5))
print(f"share of the score that the pairs miss: {why.check():.1g}")
visualize_attention(why, save_path=directory / "attention.png")
print(f"written to {directory}")
