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

from open_clt import OpenCrossLayerTranscoder, run_visualization_suite
from open_clt.embedded import START_PROMPT, TRANSCODER_DIRECTORY
from open_clt.embedded.corpus import generate_texts
from open_clt.features.feature_files import FeatureFiles
from open_clt.features.figure_data import FeaturesOnTexts
from open_clt.features.firing import most_important
from open_clt.features.labelling.automatic import in_brief
from open_clt.features.labelling.stored import with_stored_labels
from open_clt.files import read_json
from open_clt.transcoders.feature import Feature
from open_clt.visualization.figures import visualize_training_curves
from open_clt.visualization.graph.figure import visualize_attribution_graph
from open_clt.visualization.index_page import Entry, write_index
from open_clt.visualization.prompt_report.report import write_report

GALLERY = Path(__file__).resolve().parent.parent / "visualizations" / "gallery"
PROMPTS = {
    "attribution_graph.png": START_PROMPT,
    "attribution_graph_2.png": "When Mary and John went to the store, John gave a drink to",
}
SENTENCES, SEED = 6000, 2
IMPORTANT, ACTIVE = 40, 20
"""Numbers of features that figures name: the most important ones, and the most active ones of a prompt."""


def labels_of(stored: FeatureFiles, features: Iterable[Feature]) -> dict[Feature, str]:
    """The labels of some features in their records, in brief."""
    records = stored.records(sorted(set(features)))
    return {record.feature: in_brief(record.label.text) for record in records if record.label is not None}


def draw(directory: Path) -> None:
    """Draw everything into a directory."""
    clt = OpenCrossLayerTranscoder.from_pretrained("embedded")
    texts = list(islice(generate_texts(SENTENCES, seed=SEED), SENTENCES))
    stored = FeatureFiles(TRANSCODER_DIRECTORY)
    importance = FeaturesOnTexts(clt, texts).importance
    named = [
        *most_important(importance, IMPORTANT),
        *(top.feature for top in clt.get_top_features(START_PROMPT, ACTIVE)),
    ]
    suite = run_visualization_suite(
        transcoder=clt, texts=texts, output_dir=directory, prompt=START_PROMPT, labels=labels_of(stored, named)
    )
    others: list[Entry] = []
    for name, text in PROMPTS.items():
        graph = with_stored_labels(clt.attribute(text).prune(node_threshold=0.7), clt.transcoder)
        visualize_attribution_graph(graph, max_nodes=40, save_path=directory / name)
        others.append(Entry(directory / name, f"Attribution graph of “{text}”"))
    run = read_json(TRANSCODER_DIRECTORY / "training.json")
    title = f"Training of a transcoder on {run['tokens']:,} tokens ({clt.language_model.name})"
    curves = directory / "training_curves.png"
    visualize_training_curves(cast(Any, SimpleNamespace(**run["curves"])), title=title, save_path=curves)
    page = directory / "two_hop_report.html"
    report = write_report(clt.language_model, clt.transcoder, START_PROMPT, page, features=TRANSCODER_DIRECTORY)
    pictures = [Entry(path, path.stem.replace("_", " ").capitalize()) for path in suite.pictures]
    links = [
        Entry(report, f"Report of “{START_PROMPT}”: the graph, its features and its faithfulness"),
        Entry(suite.interactive, "Figures with facts under the mouse"),
    ]
    write_index(suite.index, "Gallery of the embedded transcoder", [*links, *others, *pictures, Entry(curves, title)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the gallery of the embedded transcoder.")
    parser.add_argument("--output", type=Path, default=GALLERY, help="Directory of the gallery.")
    draw(parser.parse_args().output)
