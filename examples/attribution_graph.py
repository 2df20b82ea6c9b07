"""Attribution: the graph of a prompt, pruned, grouped, drawn, checked against interventions, and exported.

    python examples/attribution_graph.py [DIRECTORY]

The graph, its pictures and its exports are written to the directory, by default a temporary one.
"""

import sys
import tempfile
from pathlib import Path

from open_clt import (
    AttributionGraph,
    OpenCrossLayerTranscoder,
    suggest_supernodes,
    visualize_attribution_graph,
    write_circuit_tracer,
)
from open_clt.graphs.formats.circuit_tracer_schema import GraphCard
from open_clt.graphs.formats.networkx import write_graphml
from open_clt.graphs.supernodes import group

directory = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp())

clt = OpenCrossLayerTranscoder.from_pretrained("embedded")
graph = clt.attribute("The capital of the state containing Dallas is")
pruned = graph.prune(node_threshold=0.8)
print(f"{graph.n_nodes} nodes, rows add up: {graph.check().holds}, {graph.scores()}")
print(f"{pruned.n_nodes} nodes after pruning, {pruned.scores()}")

groups = suggest_supernodes(pruned, clt.transcoder)
for supernode in groups[:3]:
    print(f"similar features, {supernode.label}: {', '.join(supernode.members)}")
visualize_attribution_graph(pruned, max_nodes=20, save_path=directory / "graph.png")
visualize_attribution_graph(group(pruned, groups), max_nodes=12, save_path=directory / "groups.svg")

print(clt.faithfulness(graph, max_features=8).summary())

graph.save(directory / "graph")
assert AttributionGraph.load(directory / "graph").n_edges == graph.n_edges
write_circuit_tracer(pruned, directory, GraphCard(slug="austin"))  # for circuit-tracer's viewer and Neuronpedia
write_graphml(pruned, directory / "graph.graphml")  # for Gephi and networkx
clt.write_report(graph.info.prompt, directory / "report.html")  # one page that opens without a network
print(f"written to {directory}")
