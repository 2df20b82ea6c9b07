"""The gallery: every figure of the transcoder that ships, drawn anew: ``make gallery``.

    pictures              all static figures of the suite, the training curves, and the graphs of two prompts
    interactive.html      the suite's figures as interactive ones
    two_hop_report.html   the report of the two-hop prompt
    index.html            one page that shows the pictures and links to the others

README shows pictures of the gallery. The texts are sentences that the transcoder was not trained on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import open_clt.embedded
from open_clt import OpenCrossLayerTranscoder, run_visualization_suite
from open_clt.config import FeatureRecordsConfig
from open_clt.data.contexts import pack_contexts
from open_clt.embedded.corpus import generate_texts
from open_clt.features.collecting.collect import FeatureCollection, collect_features
from open_clt.features.collecting.measured import feature_records
from open_clt.features.figure_data import FeaturesOnTexts
from open_clt.features.firing import most_important
from open_clt.features.labelling.automatic import label_records
from open_clt.features.labelling.background import Background, background_of
from open_clt.files import read_json
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.transcoders.feature import Feature
from open_clt.visualization.figures import visualize_training_curves
from open_clt.visualization.graph.figure import visualize_attribution_graph
from open_clt.visualization.index_page import Entry, write_index
from open_clt.visualization.prompt_report.report import write_report

GALLERY = Path(__file__).resolve().parent.parent / "visualizations" / "gallery"
PROMPTS = {
    "attribution_graph.png": "The capital of the state containing Dallas is",
    "attribution_graph_2.png": "When Mary and John went to the store, John gave a drink to",
}
SENTENCES, SEED, CONTEXT = 6000, 2, 64
IMPORTANT, ACTIVE = 40, 20
"""Numbers of features that figures name: the most important ones, and the most active ones of a prompt."""


class Labels:
    """Automatic labels of features, from one pass over texts."""

    def __init__(self, clt: OpenCrossLayerTranscoder, texts: list[str]) -> None:
        settings = FeatureRecordsConfig(context_length=CONTEXT)
        self._clt = clt
        self._collection: FeatureCollection = collect_features(clt.language_model, clt.transcoder, texts, settings)
        contexts = pack_contexts(texts, clt.language_model, CONTEXT)
        self._background: Background = background_of(clt.language_model, clt.transcoder, contexts)

    def of(self, features: Iterable[Feature]) -> dict[Feature, str]:
        """The labels of some features, short enough for pictures; a feature without a label is left out."""
        chosen = sorted(set(features))
        records = feature_records(self._clt.language_model, self._clt.transcoder, self._collection, chosen)
        labelled = label_records(records, self._background)
        texts = {record.feature: record.label.text for record in labelled if record.label is not None}
        return {feature: text.removeprefix("fires ") for feature, text in texts.items()}


def features_of(graph: AttributionGraph) -> list[Feature]:
    """The features of a graph."""
    nodes = (graph.node(number) for number in range(graph.n_nodes))
    return [Feature(node.layer, node.index) for node in nodes if node.kind is NodeKind.FEATURE]


def draw(directory: Path) -> None:
    """Draw everything into a directory."""
    clt = OpenCrossLayerTranscoder.from_pretrained("embedded")
    texts = list(islice(generate_texts(SENTENCES, seed=SEED), SENTENCES))
    prompt = PROMPTS["attribution_graph.png"]
    labels = Labels(clt, texts)
    importance = FeaturesOnTexts(clt, texts).importance
    named = [*most_important(importance, IMPORTANT), *(top.feature for top in clt.get_top_features(prompt, ACTIVE))]
    suite = run_visualization_suite(
        transcoder=clt, texts=texts, output_dir=directory, prompt=prompt, labels=labels.of(named)
    )
    others: list[Entry] = []
    for name, text in PROMPTS.items():
        graph = clt.attribute(text).prune(node_threshold=0.7)
        graph = graph.with_labels(labels.of(features_of(graph)))
        visualize_attribution_graph(graph, max_nodes=40, save_path=directory / name)
        others.append(Entry(directory / name, f"Attribution graph of “{text}”"))
    run = read_json(Path(open_clt.embedded.__file__).parent / "transcoder" / "training.json")
    title = f"Training of a transcoder on {run['tokens']:,} tokens ({clt.language_model.name})"
    curves = directory / "training_curves.png"
    visualize_training_curves(cast(Any, SimpleNamespace(**run["curves"])), title=title, save_path=curves)
    page = directory / "two_hop_report.html"
    report = write_report(clt.language_model, clt.transcoder, prompt, page, texts=texts[:2000])
    pictures = [Entry(path, path.stem.replace("_", " ").capitalize()) for path in suite.pictures]
    links = [
        Entry(report, f"Report of “{prompt}”: the graph, its features and its faithfulness"),
        Entry(suite.interactive, "Figures with facts under the mouse"),
    ]
    write_index(suite.index, "Gallery of the embedded transcoder", [*links, *others, *pictures, Entry(curves, title)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the gallery of the embedded transcoder.")
    parser.add_argument("--output", type=Path, default=GALLERY, help="Directory of the gallery.")
    draw(parser.parse_args().output)
