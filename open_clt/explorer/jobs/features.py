"""Jobs of the feature pages: one feature on a person's own text, and on the text of the explorer."""

from __future__ import annotations

from typing import Any

import torch

from open_clt.explorer.explorer import Explorer
from open_clt.explorer.jobs.requests import Request, Work, text_of
from open_clt.explorer.traces import check_prompt
from open_clt.features.firing import feature_activations
from open_clt.progress import report_progress
from open_clt.transcoders.feature import Feature
from open_clt.visualization.prompt_report.features import records_on

_CONTEXTS = 256
"""Number of contexts on which one feature is measured, which takes seconds with a small model."""


def probe(explorer: Explorer, request: Request) -> Work:
    """The activations of one feature on a text, token by token."""
    text, feature = text_of(request, "text"), Feature.parse(text_of(request, "feature"))
    if explorer.models is not None:
        check_prompt(explorer.models, text)

    def work() -> dict[str, Any]:
        models = explorer.wait_for_models()
        tokens = check_prompt(models, text)
        explorer.check_feature(feature)
        report_progress("testing the text", 0, 1)
        values = feature_activations(models.model, models.transcoder, text).of([feature])[0]
        peak, largest = int(torch.argmax(values)), float(values.max())
        record = None if models.records is None else models.records.record(feature)
        active = values.nonzero().flatten().tolist()
        return {
            "example": [tokens, [number for at in active for number in (at, float(f"{values[at]:.4g}"))], peak],
            "largest": largest,
            "percentile": None if record is None or not active else record.percentile(largest),
        }

    return work


def measure(explorer: Explorer, request: Request) -> Work:
    """Measure one feature on the beginning of the explorer's text, for transcoders without feature files."""
    feature = Feature.parse(text_of(request, "feature"))

    def work() -> dict[str, Any]:
        models = explorer.wait_for_models()
        explorer.check_feature(feature)
        report_progress("reading the text", 0, 1)
        contexts = explorer.measurements.text.contexts(models.model)[:_CONTEXTS]
        report_progress(f"measuring {feature}", 0, 1)
        explorer.measured[feature] = records_on(models.model, models.transcoder, contexts, [feature])[0]
        return explorer.feature(str(feature))

    return work
