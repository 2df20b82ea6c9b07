"""What ships with the embedded transcoder, measured anew: its feature records and its start graph.

    make embedded-features                                 both, from the beginning (about ten minutes)
    python tools/embedded_features.py --records DIR        both, from records that ``open-clt features`` wrote into DIR

The records are those that ``open-clt features`` measures, with its labels, made short so that the package stays small:
fewer examples, windows and lists, and three digits. The start graph is the whole attribution graph of the two-hop
prompt, with the labels of the records.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from open_clt import OpenCrossLayerTranscoder
from open_clt.cli import main
from open_clt.embedded import START_GRAPH_DIRECTORY, START_PROMPT, TRANSCODER_DIRECTORY
from open_clt.features.feature_files import FeatureFiles, write_feature_files
from open_clt.features.labelling.given import label_features
from open_clt.features.records import (
    ExampleGroup,
    FeatureExample,
    FeatureRecord,
    LayerOutputs,
    RelatedFeature,
    TokenEffect,
    TokenShare,
)

TOKENS = 500_000
EXAMPLES, BEFORE, AFTER = 8, 12, 4
"""Number of examples with the largest activations, and of tokens before and after the peak of each example."""
OUTPUTS, LAYER_OUTPUTS, RELATED, TOKEN_SHARES = 10, 3, 6, 6
"""Lengths of lists: tokens of the sum of decoders and of each decoder, related features, tokens that it fires on."""


def rounded(value: float) -> float:
    """A number with three significant digits."""
    return float(f"{value:.3g}")


def shortened(record: FeatureRecord) -> FeatureRecord:
    """A record with as much as the package has room for."""
    return replace(
        record,
        examples=tuple(distinct(map(cut, record.examples)))[:EXAMPLES],
        groups=tuple(ExampleGroup(name, (cut(each[len(each) // 2]),)) for name, each in record.groups),
        quantile_values=tuple(map(rounded, record.quantile_values)),
        top_tokens=effects(record.top_tokens, OUTPUTS),
        bottom_tokens=effects(record.bottom_tokens, OUTPUTS),
        outputs=tuple(
            LayerOutputs(layer, effects(top, LAYER_OUTPUTS), effects(bottom, LAYER_OUTPUTS))
            for layer, top, bottom in record.outputs
        ),
        fires_on=tuple(TokenShare(token, rounded(share)) for token, share in record.fires_on[:TOKEN_SHARES]),
        nearest=related(record.nearest),
        coactive=related(record.coactive),
    )


def cut(example: FeatureExample) -> FeatureExample:
    """The tokens around the peak of an example."""
    start = max(0, example.peak - BEFORE)
    window = slice(start, example.peak + AFTER + 1)
    activations = torch.tensor([rounded(value) for value in example.activations[window].tolist()])
    return FeatureExample(example.tokens[window], activations, example.peak - start)


def distinct(examples: Iterator[FeatureExample]) -> Iterator[FeatureExample]:
    """The examples without those whose tokens are those of an earlier one: generated sentences repeat."""
    seen: set[tuple[tuple[str, ...], int]] = set()
    for example in examples:
        if (example.tokens, example.peak) not in seen:
            seen.add((example.tokens, example.peak))
            yield example


def effects(tokens: Sequence[TokenEffect], count: int) -> tuple[TokenEffect, ...]:
    """The strongest effects."""
    return tuple(TokenEffect(token, rounded(effect)) for token, effect in tokens[:count])


def related(features: Sequence[RelatedFeature]) -> tuple[RelatedFeature, ...]:
    """The most similar features."""
    return tuple(RelatedFeature(feature, rounded(similarity)) for feature, similarity in features[:RELATED])


def write_records(measured: Path) -> None:
    """Write the records in ``measured``, made short, beside the transcoder that ships."""
    stored = FeatureFiles(measured)
    about = stored.about()
    assert about is not None, "open-clt features says how it measured"
    config = OpenCrossLayerTranscoder.from_pretrained("embedded").transcoder.config
    records = (record for feature in stored.features() if (record := stored.record(feature)) is not None)
    folder = write_feature_files(
        map(shortened, records),
        TRANSCODER_DIRECTORY,
        n_layers=config.n_layers,
        n_features=config.n_features,
        about=replace(about, window=BEFORE + 1 + AFTER),
        name="embedded",
    )
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"written: {folder} ({size / 1e6:.1f} MB)")


def write_graph() -> None:
    """Compute and write the start graph."""
    graph = OpenCrossLayerTranscoder.from_pretrained("embedded").attribute(START_PROMPT)
    graph = label_features(graph, FeatureFiles(TRANSCODER_DIRECTORY).records(graph.nodes.features()))
    print(f"written: {graph.save(START_GRAPH_DIRECTORY)} ({graph.n_nodes} nodes, {graph.n_edges} edges)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure the feature records and the start graph that ship.")
    parser.add_argument("--records", type=Path, help="Directory into which `open-clt features` wrote the records.")
    chosen = parser.parse_args().records
    with TemporaryDirectory() as scratch:
        if chosen is None:
            measure = ["features", "--model", "embedded", "--transcoder", "embedded", "--max-tokens", str(TOKENS)]
            if status := main([*measure, "--output", scratch]):
                sys.exit(status)
        write_records(chosen or Path(scratch))
    write_graph()
