"""Consensus: what the graphs of several prompts share, which says how a model does a task rather than one prompt.

    python examples/consensus.py [DIRECTORY]

The consensus, which is a graph itself, and its picture are written to the directory, by default a temporary one.
"""

import sys
import tempfile
from pathlib import Path

from open_clt import OpenCrossLayerTranscoder, consensus, visualize_attribution_graph
from open_clt.graphs.consensus import contingent, core

directory = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp())

clt = OpenCrossLayerTranscoder.from_pretrained("embedded")
template = "The capital of the state containing {city} is"
cities = ("Dallas", "Oakland", "Chicago", "Seattle", "Miami")
graphs = [graph.prune() for graph in clt.attribute_all([template.format(city=city) for city in cities])]

shared = consensus(graphs, template=template)
shared_by_most, rest = core(shared), contingent(shared)
print(f"features in at least 80 % of the graphs: {', '.join(map(str, sorted(set(shared_by_most.nodes.features()))))}")
print(f"features in fewer: {len(set(rest.nodes.features()))}")
for city, stability in zip(cities, shared.consensus.stability, strict=True):
    print(f"{city}: its graph has a stability of {float(stability):.2f}")

shared.save(directory / "consensus")
visualize_attribution_graph(shared_by_most, max_nodes=20, save_path=directory / "core.png")
print(f"written to {directory}")
