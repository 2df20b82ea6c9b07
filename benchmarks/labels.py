"""Automatic labels of the embedded model's features, beside what the facts of its world say the features are.

    python benchmarks/labels.py [--tokens 500000 | --features DIR] [--shown 40]

The facts are not used by the labels. For each feature that is shown, the table names the class of words (states, cities
of states, birds, days, ...; or one state with its places) to which most peaks of its examples belong, or else the last
such word before the peak, with the share of the peaks and the share of the text that belongs to it. The last line is
JSON: the mean detection score of labels with a confidence above one half, their share, and the same for all labels.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

from open_clt.config import FeatureRecordsConfig
from open_clt.data.contexts import pack_contexts
from open_clt.embedded import TRANSCODER_DIRECTORY, facts
from open_clt.embedded.corpus import generate_texts
from open_clt.features.collecting.collect import collect_features
from open_clt.features.collecting.measured import feature_records
from open_clt.features.feature_files import FeatureFiles
from open_clt.features.labelling.automatic import label_records
from open_clt.features.labelling.background import Background, background_of
from open_clt.features.labelling.single_tokens import single_tokens
from open_clt.features.records import FeatureExample, FeatureRecord
from open_clt.language.language_model import load_language_model
from open_clt.transcoders.formats.load import load_transcoder

_BEFORE = 12
"""Number of tokens before a peak in which a word of a class is looked for."""
_SHARE, _LIFT = 0.3, 3.0
"""Share of the peaks, and multiple of the share of the text, that a class needs to be named."""


def main() -> None:
    """Measure and label all features, and print the table and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=500_000, help="tokens on which features are measured")
    parser.add_argument("--features", type=Path, help="directory of feature files that are measured already")
    parser.add_argument("--shown", type=int, default=40, help="features in the table")
    arguments = parser.parse_args()
    model, transcoder = load_language_model("embedded"), load_transcoder(TRANSCODER_DIRECTORY)
    config = FeatureRecordsConfig(max_tokens=arguments.tokens)
    contexts = pack_contexts(generate_texts(4000, seed=102), model, config.context_length, max_contexts=200)
    background = background_of(model, transcoder, contexts, window=config.window)
    if arguments.features is None:
        collection = collect_features(model, transcoder, generate_texts(arguments.tokens // 8, seed=101), config)
        records = list(feature_records(model, transcoder, collection))
    else:
        stored = FeatureFiles(arguments.features)
        records = [record for record in map(stored.record, stored.features()) if record is not None]
    start = time.perf_counter()
    inputs = single_tokens(model, transcoder)
    records = list(label_records((replace(record, label=None) for record in records), background, inputs))
    seconds = time.perf_counter() - start
    alive = [record for record in records if record.density > 0]
    print("| feature | automatic label | confidence | score | what the facts say |\n|---|---|---|---|---|")
    world = World(background)
    for record in shown(alive, arguments.shown):
        label = record.label
        text, confidence, score = ("", 0.0, 0.0) if label is None else (label.text, label.confidence, label.score)
        safe = text.replace("|", "\\|")
        print(f"| {record.feature} | {safe} | {confidence:.2f} | {score:.2f} | {world.says(record)} |")
    print(json.dumps({**summary(alive), "ms_per_label": round(1e3 * seconds / len(records), 1)}))


def shown(records: Sequence[FeatureRecord], count: int) -> Iterator[FeatureRecord]:
    """As many features of each layer, at equal distances by index: none is chosen by its label."""
    layers = [list(layer) for _, layer in groupby(records, key=lambda record: record.feature.layer)]
    for layer in layers:
        of_layer = max(1, count // len(layers))
        yield from islice(layer[:: max(1, len(layer) // of_layer)], of_layer)


def summary(records: Sequence[FeatureRecord]) -> dict[str, float]:
    """The means over the features that fire; scores that could not be measured are left out."""
    labels = [record.label for record in records if record.label is not None]
    confident = [label for label in labels if label.confidence > 0.5]
    return {
        "mean_detection_score": mean(label.score for label in confident),
        "share_confident": len(confident) / max(1, len(records)),
        "mean_detection_score_of_all": mean(label.score for label in labels),
        "mean_confidence": mean(label.confidence for label in labels),
        "features": len(records),
    }


def mean(values: Iterable[float]) -> float:
    """The mean of the numbers that are known, in four digits."""
    known = [value for value in values if value == value]
    return round(sum(known) / max(1, len(known)), 4)


class Named(NamedTuple):
    """A class of words, the share of a feature's peaks that belong to it, and the share of the text."""

    name: str
    share: float
    of_text: float


class World:
    """The classes of the world's words, and how frequent they are in the background."""

    def __init__(self, background: Background) -> None:
        self._classes = dict(classes())
        tokens = [
            token
            for held_out in (False, True)
            for window in background.windows(held_out=held_out).tokens
            for token in window
        ]
        self._of_text = {
            name: sum(token.strip() in words for token in tokens) / len(tokens) for name, words in self._classes.items()
        }

    def says(self, record: FeatureRecord) -> str:
        """What the facts say of a feature's examples, or a dash."""
        examples = [example for group in record.groups for example in group.examples] or list(record.examples)
        peaks = Counter(example.tokens[example.peak].strip() for example in examples)
        here = self._best(list(peaks.elements()))
        if here is not None:
            return f"{here.share:.0%} of the peaks on {here.name} ({here.of_text:.1%} of the text)"
        before = self._best([self._last_named(example) for example in examples])
        return "–" if before is None else f"{before.share:.0%} of the peaks after {before.name}"

    def _best(self, words: Sequence[str]) -> Named | None:
        """The class with the largest share of the words, if the share and its lift are large enough."""
        shares = [
            Named(name, sum(word in members for word in words) / max(1, len(words)), self._of_text[name])
            for name, members in self._classes.items()
        ]
        fitting = [named for named in shares if named.share >= max(_SHARE, _LIFT * named.of_text)]
        return max(fitting, key=lambda named: (named.share, -named.of_text), default=None)

    def _last_named(self, example: FeatureExample) -> str:
        """The last word before the peak that belongs to any class."""
        tokens = [token.strip() for token in example.tokens[max(0, example.peak - _BEFORE) : example.peak]]
        return next((word for word in reversed(tokens) if any(word in words for words in self._classes.values())), "")


def classes() -> Iterator[tuple[str, set[str]]]:
    """The classes of words of the world's facts, by name."""
    states, countries = facts.STATES, facts.COUNTRIES
    yield "states", {state.name for state in states}
    yield "capitals of states", {state.capital for state in states}
    yield "cities of states", {city for state in states for city in state.cities}
    for kind in sorted({kind for state in states for kind in state.attributes}):
        yield f"state {kind}s", {state.attributes[kind] for state in states if kind in state.attributes}
    for state in states:
        yield f"{state.name} and its places", {state.name, state.capital, *state.cities}
    yield "countries", {country.name for country in countries}
    yield "capitals of countries", {country.capital for country in countries}
    yield "cities of countries", {city for country in countries for city in country.cities}
    yield "languages", {country.language for country in countries}
    yield "currencies", {country.currency for country in countries}
    yield "days", set(facts.DAYS)
    yield "months", set(facts.MONTHS)
    yield "number words", set(facts.NUMBERS)
    yield "words with an opposite", set(facts.OPPOSITES)
    yield "women's names", set(facts.WOMEN)
    yield "men's names", set(facts.MEN)
    yield "singular nouns", {singular for singular, _ in facts.NOUNS}
    yield "plural nouns", {plural for _, plural in facts.NOUNS}
    yield "buildings and places", set(facts.PLACES)
    yield "things to give", set(facts.OBJECTS)
    yield "animals", set(facts.ANIMALS)
    yield "feelings", set(facts.FEELINGS)
    yield "foods", set(facts.FOODS)
    yield "weather", set(facts.WEATHER)
    yield "“the”, “a”", {"the", "The", "a", "A"}
    yield "pronouns", set("he she him her his it they them He She It They you You we We I".split())
    yield "“is”, “are”, “was”, “were”", {"is", "are", "was", "were", "been", "be"}
    yield "prepositions", set("of in to from with at near beside behind by under for on".split())
    yield "signs", set(".,:;!?'\"-")
    yield "ends of texts", {"<|endoftext|>"}


if __name__ == "__main__":
    main()
