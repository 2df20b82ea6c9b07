"""Settings of the use of transcoders: reports on them, and continuations that are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from open_clt.config.checks import check_counts
from open_clt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What a report on held-out text says of attribution graphs."""

    prompts: str | None = None
    """File of the prompts that graphs are made of, one a line; None is the beginnings of held-out contexts."""
    graphs: int = 8
    """Graphs to score, of the first so many prompts; 0 is none."""
    max_feature_nodes: int = 1024
    """Features attributed in each graph."""

    def __post_init__(self) -> None:
        check_counts(self, "max_feature_nodes")
        if self.graphs < 0:
            raise ConfigError(f"graphs is {self.graphs}; it must be at least 0.")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How a continuation is drawn from a model's probabilities, and where it ends."""

    max_new_tokens: int = 50
    """Tokens to draw at most; the model's context also ends a continuation."""
    max_length: int | None = None
    """Tokens at most in all, prompt and BOS included; None sets no such limit."""
    temperature: float = 0.0
    """0 is greedy: always the most probable token. 1 draws from the model's probabilities."""
    top_k: int | None = None
    """Draw among this many most probable tokens only; None is all."""
    top_p: float = 1.0
    """Draw among the fewest most probable tokens that together reach this probability (Holtzman et al., 2020)."""
    stop_at_eos: bool = True
    """End after the end-of-text token."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_length", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")
        if self.temperature < 0:
            raise ConfigError(f"temperature is {self.temperature}; it must be 0 (greedy) or above.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; it must lie above 0 and be at most 1.")


class SamplingSettings(TypedDict, total=False):
    """The fields of SamplingConfig as keyword arguments of those who take some of them."""

    max_new_tokens: int
    max_length: int | None
    temperature: float
    top_k: int | None
    top_p: float
    stop_at_eos: bool
    seed: int
