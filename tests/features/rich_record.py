"""A feature record with something in every field, and the description of how it was measured."""

from __future__ import annotations

import torch

from open_clt.features.about import AboutRecords
from open_clt.features.records import (
    ExampleGroup,
    FeatureExample,
    FeatureLabel,
    FeatureRecord,
    LayerOutputs,
    RelatedFeature,
    TokenEffect,
    TokenShare,
)
from open_clt.transcoders.feature import Feature

ABOUT = AboutRecords(
    model="tiny",
    transcoder="./tiny",
    transcoder_hash="0" * 16,
    text="stories",
    tokens=1000,
    contexts=100,
    context_length=11,
    from_start=False,
    bos="<|endoftext|>",
    encodes_first_position=False,
    window=4,
)


def rich_record(layer: int, index: int, scale: float = 1.0) -> FeatureRecord:
    """A record of a feature whose activations go up to ``4 * scale``; each index has other numbers."""
    activations = scale * torch.tensor([0.0, 4.0, index / 8, 0.5])
    example = FeatureExample((" na", "ïve", "\n", "猫"), activations, 1)
    effects = TokenEffect(" cat", 1 / 3), TokenEffect('"</script>', 0.25)
    return FeatureRecord(
        Feature(layer, index),
        density=0.25,
        max_activation=4.0 * scale,
        examples=(example, example),
        top_tokens=effects,
        bottom_tokens=effects[:1],
        histogram=(3.0, 1.0, 0.0, 1.0 + index),
        quantile_values=tuple(scale * percent / 25 for percent in range(1, 101)),
        groups=(ExampleGroup("peaks 50–100 %", (example,)), ExampleGroup("peaks 0–50 %", ())),
        outputs=tuple(LayerOutputs(target, effects, effects[1:]) for target in (layer, layer + 1)),
        fires_on=(TokenShare("ïve", 0.75), TokenShare("猫", 0.25)),
        nearest=(RelatedFeature(Feature(layer, index + 1), 0.5),),
        coactive=(RelatedFeature(Feature(layer + 1, index), 1 / 3),),
        label=FeatureLabel("fires on “ïve” <b>", 0.75, 0.875, automatic=True),
    )
