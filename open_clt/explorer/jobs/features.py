"""Jobs of the feature pages: a person's own text tested on one feature."""

from __future__ import annotations

from typing import Any

import torch

from open_clt.explorer.explorer import Explorer
from open_clt.explorer.jobs.requests import Request, Work, text_of
from open_clt.explorer.traces import check_prompt
from open_clt.features.firing import feature_activations
from open_clt.progress import report_progress
from open_clt.transcoders.feature import Feature


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
