"""Settings of training: the loss, the optimizer, its schedule, batches, and the checkpoints that are kept."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

from open_clt.config.checks import check_above_zero, check_counts, check_shares
from open_clt.config.json import nearest_name
from open_clt.config.texts import TextsConfig
from open_clt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TanhSparsityConfig:
    """``coefficient * sum tanh(steepness * |W_dec| * a)``: a soft count of active features (methods)."""

    kind: Literal["tanh"] = "tanh"
    coefficient: float
    """lambda; per token, so it does not depend on the batch size."""
    steepness: float = 4.0
    """c: how soon a feature counts as one."""
    warmup: float = 0.5
    """Share of training over which the coefficient rises linearly from zero."""


@dataclass(frozen=True, kw_only=True)
class L1SparsityConfig:
    """``coefficient * sum |W_dec| * a``: each activation, as large as what it writes (Conerly et al., 2024)."""

    kind: Literal["l1"] = "l1"
    coefficient: float
    """lambda; per token, so it does not depend on the batch size."""
    warmup: float = 0.5
    """Share of training over which the coefficient rises linearly from zero."""


SparsityConfig: TypeAlias = TanhSparsityConfig | L1SparsityConfig


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is added to the reconstruction loss, and how much of it."""

    sparsity: SparsityConfig | None = None
    """What keeps features from firing; TopK and BatchTopK need none."""
    preactivation: float = 0.0
    """Coefficient of ``sum relu(threshold - pre) * |W_dec|``, which keeps features from dying."""
    preactivation_on: Literal["dead", "all"] = "dead"
    """The features it is summed over; all of them cost a dense backward pass through the encoder."""
    auxiliary: float = 1 / 32
    """Weight of AuxK: dead features reconstruct what the living leave over."""
    auxiliary_k: int = 32
    """Dead features per token and layer that AuxK uses."""
    dead_after_tokens: int = 50_000
    """A feature silent for this many tokens counts as dead."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which tokens a transcoder is trained on, how many at a time, and how they get there."""

    batch_size: int = 1024
    """Tokens per step."""
    epochs: int = 1
    """Passes over the texts."""
    max_steps: int | None = None
    """Train for exactly this many steps, over as many epochs as that takes; None is ``epochs`` epochs."""
    max_norm_ratio: float | None = 10.0
    """Leave out tokens whose input norm exceeds this many times the layer's median; None keeps all."""
    context_length: int = 128
    """Tokens per packed context, BOS included."""
    harvest_batch_size: int = 16
    """Contexts per forward pass of the language model."""
    memory_limit: float = 2.0
    """Gigabytes of activations kept in memory: if all fit, each text is read once; else once per epoch."""
    storage_dtype: Literal["float32", "bfloat16"] = "float32"
    """How activations are kept in memory; bfloat16 takes half the room and rounds to three digits."""
    seed: int = 0
    """Of the first weights, and of the order of tokens."""

    def __post_init__(self) -> None:
        check_counts(self, "batch_size", "epochs", "context_length", "harvest_batch_size", "max_steps")
        check_above_zero(self, "memory_limit", "max_norm_ratio")


@dataclass(frozen=True, kw_only=True)
class LearningConfig:
    """How a transcoder learns from a batch: loss, optimizer, schedule."""

    loss: LossConfig = field(default_factory=LossConfig)
    learning_rate: float = 1e-3
    """Of Adam, at its highest."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of its two moments."""
    weight_decay: float = 0.0
    """Of AdamW: the share of each weight that a step of learning rate 1 would take away; 0 is plain Adam."""
    warmup_share: float = 0.05
    """Share of steps over which the learning rate rises from zero."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What the learning rate does between rise and decay; the cosine falls to zero at the last step."""
    decay_share: float = 0.3
    """Final share of steps over which the learning rate falls linearly to zero."""
    initial_firing_rate: float | None = None
    """Set encoder biases from data so that each feature fires on this share of tokens; None leaves them zero."""

    def __post_init__(self) -> None:
        check_shares(self, "warmup_share", "decay_share", "initial_firing_rate")
        check_above_zero(self, "learning_rate")
        if self.weight_decay < 0:
            raise ConfigError(f"weight_decay is {self.weight_decay}; it must be at least 0.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas is {self.betas}; both must lie from 0 up to, not including, 1.")


@dataclass(frozen=True, kw_only=True)
class CheckpointsConfig:
    """Which states of a training run are kept, in ``checkpoints/`` of its output directory."""

    every: int = 1000
    """Steps between checkpoints; ``last`` is always the newest."""
    keep_all: bool = False
    """Keep every checkpoint as ``step-N`` as well."""
    best: bool = True
    """Keep the checkpoint with the lowest held-out FVU, measured every ``val_check_interval`` batches, as ``best``."""

    def __post_init__(self) -> None:
        check_counts(self, "every")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a transcoder is trained: on which tokens, how it learns from them, and which states are kept."""

    data: DataConfig = field(default_factory=DataConfig)
    texts: TextsConfig = field(default_factory=TextsConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    gradient_clip: float | None = 1.0
    """Largest norm of the gradient of a step; None does not clip."""

    def __post_init__(self) -> None:
        check_above_zero(self, "gradient_clip")

    @staticmethod
    def of(**settings: Any) -> TrainingConfig:
        """Put settings into the part that has them: ``TrainingConfig.of(batch_size=256, learning_rate=1e-3)``.

        Every field of the four parts may be named, since no two parts share a name. Raises ConfigError that suggests
        the nearest name on a setting that no part has.
        """
        parts: dict[str, dict[str, Any]] = {name: {} for name in _TRAINING_PARTS}
        own: dict[str, Any] = {}
        for name, value in settings.items():
            part = next((part for part, config in _TRAINING_PARTS.items() if name in _names(config)), None)
            (own if part is None else parts[part])[name] = value
        known = [*_names(TrainingConfig), *(name for config in _TRAINING_PARTS.values() for name in _names(config))]
        for name in own.keys() - set(_names(TrainingConfig)):
            raise ConfigError(f"Training has no setting {name!r}; {nearest_name(name, known)}")
        for name in own.keys() & {part for part, values in parts.items() if values}:
            raise ConfigError(f"{name} is given as a whole and in parts ({', '.join(parts[name])}); give one of them.")
        made = {part: _TRAINING_PARTS[part](**values) for part, values in parts.items() if part not in own}
        return TrainingConfig(**made, **own)


_TRAINING_PARTS: dict[str, type[Any]] = {
    "data": DataConfig,
    "texts": TextsConfig,
    "learning": LearningConfig,
    "checkpoints": CheckpointsConfig,
}


def _names(config: type[Any]) -> list[str]:
    return [entry.name for entry in fields(config)]
