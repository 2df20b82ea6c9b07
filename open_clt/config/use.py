"""Settings for the use of transcoders: evaluation reports, and the sampling of continuations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from open_clt.config.checks import check_above_zero, check_counts, check_not_negative, check_seed
from open_clt.config.json import CheckedConfig
from open_clt.errors import ConfigError

_LEAST_TEMPERATURE = 1e-6
"""Least temperature above 0: logits that are divided by less overflow."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ReportConfig(CheckedConfig):
    """Attribution graphs in the evaluation report on held-out text."""

    prompts: str | None = None
    """File of prompts for attribution graphs, one per line; None uses the beginnings of held-out contexts."""
    graphs: int = 8
    """Number of prompts, from the first on, whose attribution graphs are scored; 0 scores none."""
    max_feature_nodes: int = 1024
    """Largest number of features that are attributed in each graph."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "max_feature_nodes")
        check_not_negative(self, "graphs")


@dataclass(frozen=True, kw_only=True, repr=False)
class FeatureRecordsConfig(CheckedConfig):
    """The text on which feature records are measured, and the examples that they hold."""

    context_length: int = 128
    """Number of tokens in a context, BOS included."""
    from_start: bool = False
    """Begin every context at the start of a text, and drop the part of a text that does not fit; for short texts."""
    max_tokens: int | None = 500_000
    """Largest number of tokens to read; None reads the whole text."""
    top_examples: int = 20
    """Number of contexts with the largest activations that a record shows."""
    examples_per_group: int = 5
    """Number of examples from each tenth of the contexts in which the feature is active."""
    window: int = 32
    """Number of tokens in an example."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "max_tokens", "top_examples", "examples_per_group", "window")
        if self.context_length < 2:
            raise ConfigError(f"context_length is {self.context_length}; it must be at least 2, because of BOS.")


@dataclass(frozen=True, kw_only=True, repr=False)
class ThresholdConfig(CheckedConfig):
    """The thresholds of a transcoder that is converted from TopK or BatchTopK to JumpReLU."""

    scale_factor: float | None = None
    """Factor on the fitted thresholds of all layers; None fits one factor per layer, which keeps the layer's L0."""
    default_threshold: float | None = None
    """Threshold of features that are never active on the tokens; None is one above all of their pre-activations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero(self, "scale_factor", "default_threshold")


@dataclass(frozen=True, kw_only=True, repr=False)
class SamplingConfig(CheckedConfig):
    """Sampling of a continuation from a model's probabilities, and the end of the continuation."""

    max_new_tokens: int = 50
    """Largest number of tokens to draw; the model's context length also ends a continuation."""
    max_length: int | None = None
    """Largest number of tokens of prompt and continuation together, BOS included; None sets no such limit."""
    temperature: float = 0.0
    """Sampling temperature: 0 always takes the most probable token, 1 draws from the model's probabilities."""
    top_k: int | None = None
    """Draw only among this number of most probable tokens; None draws among all tokens."""
    top_p: float = 1.0
    """Draw only among the fewest tokens that together reach this probability (Holtzman et al., 2020)."""
    stop_at_eos: bool = True
    """End the continuation after EOS, or after another token that the model's generation config names as an end."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "max_new_tokens", "max_length", "top_k")
        check_seed(self)
        if self.temperature != 0 and self.temperature < _LEAST_TEMPERATURE:
            raise ConfigError(
                f"temperature is {self.temperature}; it must be 0, which is greedy sampling, or at least "
                f"{_LEAST_TEMPERATURE:g}."
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; it must lie above 0 and be at most 1.")


class SamplingSettings(TypedDict, total=False):
    """The fields of SamplingConfig as optional keyword arguments of a function."""

    max_new_tokens: int
    max_length: int | None
    temperature: float
    top_k: int | None
    top_p: float
    stop_at_eos: bool
    seed: int
