"""Hover texts of features: what an interactive figure says about a feature under the mouse."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import final

from open_clt.features.figure_data import OutputEffects
from open_clt.features.labelling.automatic import arrow_text
from open_clt.features.records import FeatureRecord
from open_clt.transcoders.feature import Feature
from open_clt.visualization.interactive.text import BREAK, tokens_text, wrapped_text

_MOST_OUTPUTS = 5


@final
class FeatureNotes:
    """The facts that are known of features: labels, records, and effects on output tokens.

    ``labels`` go before the labels of ``records``; a record without a label is described by its tokens.
    """

    def __init__(
        self,
        labels: Mapping[Feature, str] | None = None,
        records: Iterable[FeatureRecord] = (),
    ) -> None:
        self._records = {record.feature: record for record in records}
        self._given = labels or {}
        of_records = {feature: _label(record) for feature, record in self._records.items()}
        self.labels: dict[Feature, str] = {**{f: label for f, label in of_records.items() if label}, **self._given}
        """Label of each feature that has one."""
        self.outputs: Mapping[Feature, OutputEffects] = {}
        """Output tokens of features, which go before those of the records."""

    def lines(self, feature: Feature, activation: float | None = None) -> list[str]:
        """Return the lines about a feature, as plotly reads them; with an ``activation``, also its percentile."""
        label, name = self.label(feature), f"<b>{feature}</b>"
        return [f"{name} {label}" if label else name, *self.facts(feature, activation)]

    def label(self, feature: Feature) -> str:
        """Return the label of a feature, as plotly reads it; an automatic one is italic. Empty without a label."""
        label, record = wrapped_text(self.labels.get(feature, "")), self._records.get(feature)
        given = feature in self._given or (
            record is not None and record.label is not None and not record.label.automatic
        )
        return label if given or not label else f"<i>{label}</i> (automatic)"

    def facts(self, feature: Feature, activation: float | None = None) -> list[str]:
        """Return the lines about a feature without its name and label."""
        lines: list[str] = []
        record = self._records.get(feature)
        if activation is not None:
            percentile = None if record is None else record.percentile(activation)
            rank = "" if percentile is None else f", higher than {percentile - 1} % of its activations"
            lines.append(f"activation {activation:.3g}{rank}")
        if record is not None and not math.isnan(record.density):
            lines.append(f"active on {record.density:.2%} of tokens, at most {record.max_activation:.3g}")
        return lines + self._output_lines(feature, record)

    def text(self, feature: Feature, *more: str) -> str:
        """Return the lines about a feature as one text, followed by ``more`` lines."""
        return BREAK.join([*self.lines(feature), *more])

    def _output_lines(self, feature: Feature, record: FeatureRecord | None) -> list[str]:
        if feature in self.outputs:
            raises, lowers = self.outputs[feature]
        elif record is not None:
            raises = tuple(effect.token for effect in record.top_tokens)
            lowers = tuple(effect.token for effect in record.bottom_tokens)
        else:
            return []
        named = (("raises", raises[:_MOST_OUTPUTS]), ("lowers", lowers[:_MOST_OUTPUTS]))
        return [f"{verb} {tokens_text(tokens)}" for verb, tokens in named if tokens]


def _label(record: FeatureRecord) -> str:
    return record.label.text if record.label is not None else arrow_text(record)
