"""Views of features: the record of one feature, the most active features of a text, and all activations on it."""

from __future__ import annotations

from collections.abc import Sequence

from open_clt.features.firing import FeatureActivations, TopFeature
from open_clt.features.records import FeatureExample, FeatureRecord, TokenEffect
from open_clt.visualization.figures import visualize_feature_heatmap
from open_clt.visualization.notebook.html import (
    Markup,
    bar,
    card,
    escaped,
    facts,
    folded,
    histogram,
    joined,
    names,
    picture,
    shaded,
    table,
    token,
)
from open_clt.visualization.preparation import text_of

_EXAMPLES, _AROUND = 5, 14
"""Number of examples that are shown at once, and of tokens on each side of an example's peak."""
_ROWS = 30
"""Largest number of rows of a list."""
_TOKENS = 40
"""Largest number of tokens of a heatmap."""


def record_view(record: FeatureRecord) -> str:
    """How often a feature is active, what it raises and lowers, and examples with tokens shaded by activation."""
    label = record.label
    kind = "automatic label" if label is not None and label.automatic else ""
    strength = facts(
        [
            ("active on", f"{record.density:.3%} of the tokens" if record.density == record.density else None),
            ("largest activation", record.max_activation),
            ("fires on", names(share.token for share in record.fires_on[:10]) if record.fires_on else None),
            ("raises", _effects(record.top_tokens)),
            ("lowers", _effects(record.bottom_tokens)),
            ("nearest", ", ".join(f"{near.feature} {near.similarity:.2f}" for near in record.nearest[:6])),
            ("active together", ", ".join(f"{near.feature} {near.similarity:.2f}" for near in record.coactive[:6])),
        ]
    )
    counts = record.histogram and histogram(record.histogram, record.min_activation, record.max_activation)
    groups = [folded(group.name, _examples(group.examples, record.max_activation)) for group in record.groups]
    if not record.examples and not record.density > 0:
        return card(record.feature, "The feature is active on no token of the text.", strength)
    title = f"{record.feature} {label.text}" if label is not None else record.feature
    return card(title, strength, counts, _examples(record.examples, record.max_activation), *groups, note=kind)


def top_features_view(top: Sequence[TopFeature]) -> str:
    """The most active features of a text, with the token at which each is most active."""
    largest = max((abs(entry.activation) for entry in top), default=1.0)
    rows = [
        (str(entry.feature), bar(entry.activation / largest, f"{entry.activation:.3g}"), token(entry.token), position)
        for entry in top[:_ROWS]
        for position in [str(entry.position)]
    ]
    note = f"the first {_ROWS} of {len(top)}" if len(top) > _ROWS else ""
    return card("Most active features", table(("feature", "activation", "token", "position"), rows), note=note)


def activations_view(activations: FeatureActivations) -> str:
    """The most active features of a text as a heatmap, and the number of active features of each layer."""
    counts = [int((layer.values != 0).sum()) for layer in activations.layers]
    rows = facts([("active features by layer", ", ".join(f"L{layer} {count:,}" for layer, count in enumerate(counts)))])
    title = joined(["Features on “", escaped(text_of(activations.tokens)), "”"])
    if len(activations.tokens) > _TOKENS:
        return card(title, rows, note=f"{len(activations.tokens)} tokens")
    figure = visualize_feature_heatmap(activations, top_n=12, title="")
    return card(title, rows, picture(figure, "Heatmap of the most active features"))


def _effects(effects: Sequence[TokenEffect]) -> Markup | None:
    return names(effect.token for effect in effects[:10]) if effects else None


def _examples(examples: Sequence[FeatureExample], largest: float) -> Markup:
    """Examples, the strongest first, each in one line around its peak."""
    lines: list[Markup] = []
    for example in examples[:_EXAMPLES]:
        low, high = max(0, example.peak - _AROUND), example.peak + _AROUND + 1
        values = example.activations[low:high].tolist()
        line = shaded(example.tokens[low:high], values, largest, example.peak - low)
        before, after = "… " if low else "", " …" if high < len(example.tokens) else ""
        lines.append(joined([Markup("<div>"), before, line, after, Markup("</div>")]))
    return joined(lines)
