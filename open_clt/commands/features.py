"""The command ``open-clt features``: measure every feature of a transcoder on a text, and write feature files.

Features get automatic labels, or labels of a language model behind an endpoint; a user's own labels win. Several
processes can share the text:

    torchrun --nproc-per-node 2 -m open_clt features --model gpt2 --transcoder DIRECTORY --text FILE
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from open_clt.commands.held_out import add_measured_options, context_length, texts_of
from open_clt.commands.label_service import add_service_options, label_with_service, read_endpoint
from open_clt.commands.options import (
    AddParser,
    add_command,
    add_labels_option,
    add_model_options,
    integer,
    load,
    own_source,
    read_labels_of,
    seed,
)
from open_clt.config import FeatureRecordsConfig
from open_clt.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from open_clt.features.about import AboutRecords
    from open_clt.features.collecting.collect import FeatureCollection
    from open_clt.features.records import FeatureRecord
    from open_clt.language.language_model import LanguageModel
    from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
    from open_clt.processes import Processes

_BACKGROUND = 400
"""Number of contexts in the background of automatic labels."""
_OUTPUT = (
    "Directory in whose folder `features` the files are written (default: the directory of the transcoder, or a "
    "directory of the cache for a transcoder of the hub and for the one that ships with the package)."
)


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    parser = add_command(add_parser, "features", "Measure every feature of a transcoder on a text.")
    add_model_options(parser)
    option = parser.add_argument
    add_measured_options(option, max_tokens=500_000)
    option("--seed", type=seed, help="Seed of generated sentences (default: 0).")
    option("--output", "-o", type=Path, metavar="DIR", help=_OUTPUT)
    option("--html", type=Path, metavar="DIR", help="Directory for pages about all features, which open in a browser.")
    add_labels_option(option)
    settings = FeatureRecordsConfig
    for flag, name, text in (
        ("--top-examples", "top_examples", "Number of contexts with the largest activations that a record shows"),
        ("--group-examples", "examples_per_group", "Number of examples from each tenth of a feature's contexts"),
        ("--window", "window", "Number of tokens in an example"),
    ):
        default = getattr(settings, name)
        option(flag, dest=name, type=integer(least=1), default=default, help=f"{text} (default: {default}).")
    add_service_options(parser)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Check the output directory, measure, and write the files."""
    from open_clt.features.feature_files import check_feature_files
    from open_clt.features.places import place_for_records
    from open_clt.files import check_directory, check_ours
    from open_clt.processes import joined_processes
    from open_clt.transcoders.neurons.source import is_neurons

    if arguments.text is not None and arguments.seed is not None:
        raise ConfigError("--seed selects generated sentences, but --text names a text; remove one of the two options.")
    if is_neurons(arguments.transcoder):
        raise ConfigError(
            "Records show where a feature is active, and every neuron is active at every token; give a transcoder that "
            "was trained."
        )
    if arguments.output is not None:
        check_feature_files(arguments.output)
    if arguments.html is not None:
        check_directory(arguments.html)
        check_ours(arguments.html, ["index.html"])
    read_labels_of(arguments)
    endpoint = read_endpoint(arguments)
    with joined_processes() as processes:
        if endpoint is not None and processes.is_first:
            endpoint.check()
        clt = load(arguments)
        output = arguments.output or place_for_records(own_source(arguments), clt.transcoder)
        check_feature_files(output)
        _measure(arguments, clt, output, processes)
    return 0


def _measure(arguments: argparse.Namespace, clt: OpenCrossLayerTranscoder, output: Path, processes: Processes) -> None:
    """Measure all features; the first process writes the files and says where they are."""
    from open_clt.features.collecting.collect import collect_features
    from open_clt.features.feature_files import write_feature_files
    from open_clt.visualization.dashboards.write import write_dashboards

    config = FeatureRecordsConfig(
        context_length=context_length(arguments),
        from_start=arguments.text is None,
        max_tokens=arguments.max_tokens,
        top_examples=arguments.top_examples,
        examples_per_group=arguments.examples_per_group,
        window=arguments.window,
    )
    model, transcoder = clt.language_model, clt.transcoder
    texts = partial(texts_of, arguments, model, sentences=1000 + arguments.max_tokens // 10)
    collection = collect_features(model, transcoder, texts(), config, processes=processes)
    if not processes.is_first:
        return
    about = _about(arguments, clt, collection)
    folder = write_feature_files(
        _labelled(arguments, clt, collection, _some_contexts(texts(), model, config)),
        output,
        n_layers=collection.model_layers[-1] + 1,
        n_features=collection.n_features,
        about=about,
        name=about.transcoder,
    )
    alive = int((collection.counts > 0).sum())
    print(f"{alive} of {len(collection.counts)} features are active on {collection.n_tokens:,} tokens")
    print(f"written: {folder}")
    if arguments.html is not None:
        print(f"pages: {write_dashboards(output, arguments.html)}")


def _some_contexts(texts: Iterable[str], model: LanguageModel, config: FeatureRecordsConfig) -> Tensor:
    """The first contexts of the text, from which labels must tell those in which a feature is active."""
    from open_clt.data.contexts import stream_contexts

    return next(stream_contexts(texts, model, config.context_length, _BACKGROUND, from_start=config.from_start))


def _labelled(
    arguments: argparse.Namespace, clt: OpenCrossLayerTranscoder, collection: FeatureCollection, contexts: Tensor
) -> Iterator[FeatureRecord]:
    """The records with labels: those of the user, those of a language model, and automatic ones for all others."""
    from open_clt.features.collecting.measured import feature_records
    from open_clt.features.labelling.automatic import label_records
    from open_clt.features.labelling.background import background_of
    from open_clt.features.labelling.given import with_labels
    from open_clt.features.labelling.single_tokens import single_tokens

    model, transcoder = clt.language_model, clt.transcoder
    labels, endpoint = read_labels_of(arguments), read_endpoint(arguments)
    background = background_of(model, transcoder, contexts)
    records = with_labels(feature_records(model, transcoder, collection), labels)
    records = label_records(records, background, single_tokens(model, transcoder))
    if endpoint is None:
        return records
    active = [collection.feature(row) for row in collection.counts.nonzero().flatten().tolist()]
    candidates = [feature for feature in active if feature not in labels]
    return label_with_service(records, candidates, arguments, endpoint, background)


def _name(arguments: argparse.Namespace) -> str:
    """The name of the transcoder in its files, which may be published: the last part of the path of a directory."""
    source = arguments.transcoder or arguments.model
    return Path(source).resolve().name if Path(source).is_dir() and source != "embedded" else source


def _about(arguments: argparse.Namespace, clt: OpenCrossLayerTranscoder, collection: FeatureCollection) -> AboutRecords:
    """How the records are measured."""
    from open_clt.features.about import AboutRecords
    from open_clt.transcoders.formats.fingerprint import fingerprint

    return AboutRecords(
        model=clt.language_model.name,
        transcoder=_name(arguments),
        transcoder_hash=fingerprint(clt.transcoder),
        text=arguments.text or f"generated sentences, seed {arguments.seed or 0}",
        tokens=collection.n_tokens,
        contexts=collection.n_contexts,
        context_length=collection.context_length,
        from_start=collection.config.from_start,
        bos=clt.language_model.token_strings([clt.language_model.bos_token_id])[0],
        encodes_first_position=collection.first_position == 0,
        window=collection.top.window,
    )
