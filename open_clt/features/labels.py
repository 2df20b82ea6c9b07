"""Labels: what a feature is called in graphs, after the tokens it fires on and those it raises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from open_clt.features.records import FeatureRecord
from open_clt.graphs.graph import AttributionGraph
from open_clt.transcoders.feature import Feature


def describe(record: FeatureRecord, count: int = 2) -> str:
    """A label for a feature: the tokens it fires on most often, and those it raises most, such as ``the, a → cat``.

    Tokens that no one can read, such as a part of a character, are passed over for the next ones.
    """
    peaks = Counter(example.tokens[example.peak] for example in record.examples)
    fires = _readable((token for token, _ in peaks.most_common()), count)
    raises = _readable((effect.token for effect in record.top_tokens), count)
    return " → ".join(filter(None, (fires, raises))) or f"feature {record.feature.index}"


def label_features(graph: AttributionGraph, records: Iterable[FeatureRecord]) -> AttributionGraph:
    """The same graph, its features named after their records; labels it has already are kept."""
    labels: dict[Feature, str] = {record.feature: describe(record) for record in records}
    return graph.with_labels({**labels, **graph.labels})


def _readable(tokens: Iterable[str], count: int) -> str:
    """The first few tokens that can be read, without the spaces around them; those that are no words in quotes."""
    stripped = (token.strip() for token in tokens)
    words = dict.fromkeys(token for token in stripped if token and token.isprintable() and "\ufffd" not in token)
    shown = [word if any(map(str.isalnum, word)) else f"“{word}”" for word in list(words)[:count]]
    return ", ".join(shown)
