"""Labels: names of features in graphs, made of the tokens on which they are active and the tokens they raise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from open_clt.features.records import FeatureRecord
from open_clt.graphs.graph import AttributionGraph
from open_clt.transcoders.feature import Feature


def describe(record: FeatureRecord, count: int = 2) -> str:
    """A label such as ``the, a → cat``: the tokens on which a feature peaks most often, then those it raises most.

    Each side has at most ``count`` tokens. Tokens that cannot be read, such as a part of a character, are skipped.
    """
    peaks = Counter(example.tokens[example.peak] for example in record.examples)
    active_on = _readable((token for token, _ in peaks.most_common()), count)
    raises = _readable((effect.token for effect in record.top_tokens), count)
    return " → ".join(filter(None, (active_on, raises))) or f"feature {record.feature.index}"


def label_features(graph: AttributionGraph, records: Iterable[FeatureRecord]) -> AttributionGraph:
    """A copy of the graph with a label for each feature that has a record; labels of the graph are kept."""
    labels: dict[Feature, str] = {record.feature: describe(record) for record in records}
    return graph.with_labels({**labels, **graph.labels})


def _readable(tokens: Iterable[str], count: int) -> str:
    """The first ``count`` readable tokens, stripped of spaces; tokens without letters or digits are quoted."""
    stripped = (token.strip() for token in tokens)
    words = dict.fromkeys(token for token in stripped if token and token.isprintable() and "\ufffd" not in token)
    shown = [word if any(map(str.isalnum, word)) else f"“{word}”" for word in list(words)[:count]]
    return ", ".join(shown)
