"""Settings of training: loss, optimizer, learning-rate schedule, batches, and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

from open_clt.config.checks import check_above_zero, check_counts, check_not_negative, check_seed, check_shares
from open_clt.config.dataset import DatasetConfig
from open_clt.config.json import CheckedConfig, nearest_name
from open_clt.config.texts import TextsConfig
from open_clt.errors import ConfigError


@dataclass(frozen=True, kw_only=True, repr=False)
class TanhSparsityConfig(CheckedConfig):
    """``coefficient * sum tanh(steepness * |W_dec| * a)``, a soft count of active features (Ameisen et al., 2025)."""

    kind: Literal["tanh"] = "tanh"
    coefficient: float
    """Coefficient of the sparsity loss; the loss is a mean over tokens, so the batch size does not matter."""
    steepness: float = 4.0
    """Steepness of the tanh: with a larger value, a weaker activation counts as a whole active feature."""
    warmup: float = 0.5
    """Share of the training steps over which the sparsity coefficient rises linearly from zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "coefficient", "warmup")
        check_above_zero(self, "steepness")


@dataclass(frozen=True, kw_only=True, repr=False)
class L1SparsityConfig(CheckedConfig):
    """``coefficient * sum |W_dec| * a``, the sum of activations times decoder norms (Conerly et al., 2024)."""

    kind: Literal["l1"] = "l1"
    coefficient: float
    """Coefficient of the sparsity loss; the loss is a mean over tokens, so the batch size does not matter."""
    warmup: float = 0.5
    """Share of the training steps over which the sparsity coefficient rises linearly from zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "coefficient", "warmup")


SparsityConfig: TypeAlias = TanhSparsityConfig | L1SparsityConfig


@dataclass(frozen=True, kw_only=True, repr=False)
class LossConfig(CheckedConfig):
    """Terms that are added to the reconstruction loss, and their coefficients."""

    sparsity: SparsityConfig | None = None
    """Sparsity loss, which limits how many features fire; TopK and BatchTopK need none."""
    distance_penalty: float = 0.0
    """Coefficient of the distance loss ``sum j * |W_dec[j]| * |a|``, for writing ``j`` layers above a feature."""
    preactivation: float = 0.0
    """Coefficient of the pre-activation loss ``sum relu(threshold - pre) * |W_dec|``, which revives dead features."""
    preactivation_on: Literal["dead", "all"] = "dead"
    """Features in the pre-activation loss: the dead ones or all; all of them need a dense backward pass."""
    auxiliary: float = 1 / 32
    """Coefficient of the auxiliary loss AuxK, in which dead features reconstruct the error of the reconstruction."""
    auxiliary_k: int = 32
    """Number of dead features per token and layer that the auxiliary loss AuxK uses."""
    dead_after_tokens: int = 50_000
    """Number of tokens after which a feature that has not fired counts as dead."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "distance_penalty", "preactivation", "auxiliary")
        check_counts(self, "auxiliary_k", "dead_after_tokens")


@dataclass(frozen=True, kw_only=True, repr=False)
class DataConfig(CheckedConfig):
    """Tokens that a transcoder is trained on, their batches, and the memory for their activations."""

    batch_size: int = 1024
    """Number of tokens per batch."""
    epochs: int = 1
    """Number of passes over the texts."""
    max_steps: int | None = None
    """Number of training steps, over as many epochs as they take; None trains for the given number of epochs."""
    max_norm_ratio: float | None = 10.0
    """Leave out tokens whose input norm exceeds this multiple of a layer's median norm; None keeps all tokens."""
    context_length: int = 128
    """Number of tokens per packed context, BOS included."""
    harvest_batch_size: int = 16
    """Number of contexts per forward pass of the language model."""
    harvest_process: bool = False
    """Whether the language model runs in a process of its own during training, which loads it once more by its name."""
    memory_limit: float = 2.0
    """Memory limit for activations, in gigabytes; if all fit, each text is read once, otherwise once per epoch."""
    storage_dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of activations in memory; bfloat16 takes half the memory and rounds to about three digits."""
    seed: int = 0
    """Seed of the initial weights and of the order of the tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "batch_size", "epochs", "context_length", "harvest_batch_size", "max_steps")
        check_above_zero(self, "memory_limit", "max_norm_ratio")
        check_seed(self)


@dataclass(frozen=True, kw_only=True, repr=False)
class LearningConfig(CheckedConfig):
    """Loss, optimizer and learning-rate schedule of a training run."""

    loss: LossConfig = field(default_factory=LossConfig)
    """Terms of the loss beside the reconstruction loss, and their coefficients."""
    learning_rate: float = 1e-3
    """Learning rate of Adam at its peak."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's estimates of the first and second moment."""
    weight_decay: float = 0.0
    """Weight decay of AdamW: each step subtracts learning rate times weight decay times weight; 0 is plain Adam."""
    warmup_share: float = 0.05
    """Share of the steps, at the start, over which the learning rate rises linearly from zero."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after warm-up: constant, or a cosine that falls to zero at the last step."""
    decay_share: float = 0.3
    """Share of the steps, at the end, over which the learning rate also falls linearly to zero."""
    initial_firing_rate: float | None = None
    """Set encoder biases from data so that each feature fires on this share of tokens; None starts them at zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "warmup_share", "decay_share", "initial_firing_rate")
        check_above_zero(self, "learning_rate")
        check_not_negative(self, "weight_decay")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas is {self.betas}; both must be at least 0 and below 1.")


@dataclass(frozen=True, kw_only=True, repr=False)
class CheckpointsConfig(CheckedConfig):
    """Checkpoints that a training run keeps in the folder ``checkpoints`` of its output directory."""

    every: int = 1000
    """Number of steps between checkpoints; the newest checkpoint is always ``checkpoints/last``."""
    keep_all: bool = False
    """Keep every checkpoint as ``checkpoints/step-N``, not only the newest."""
    best: bool = True
    """Keep the checkpoint with the lowest held-out FVU, measured every ``val_check_interval`` batches, as ``best``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "every")


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainingConfig(CheckedConfig):
    """All settings of a training run: its data, loss and optimizer, checkpoints, and gradient clipping."""

    data: DataConfig = field(default_factory=DataConfig)
    """Tokens that a transcoder is trained on, their batches, and the memory for their activations."""
    texts: TextsConfig = field(default_factory=TextsConfig)
    """Source of the texts, the way in which contexts are cut from them, and the contexts that are held out."""
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    """Dataset of activations to train on, in place of a language model and texts."""
    learning: LearningConfig = field(default_factory=LearningConfig)
    """Loss, optimizer and learning-rate schedule."""
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    """Checkpoints that the training run keeps."""
    gradient_clip: float | None = 1.0
    """Gradient clipping: the largest norm of a step's gradient; None does not clip."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero(self, "gradient_clip")

    @staticmethod
    def of(**settings: Any) -> TrainingConfig:
        """Build a config from settings of any of its parts: ``TrainingConfig.of(batch_size=256, learning_rate=1e-3)``.

        Each setting goes to the part that has a field of its name; no two parts share a name. Raises ConfigError for a
        name that no part has, and suggests the nearest one.
        """
        of_parts: dict[str, dict[str, Any]] = {name: {} for name in _TRAINING_PARTS}
        of_training: dict[str, Any] = {}
        for name, value in settings.items():
            part = next((part for part, config in _TRAINING_PARTS.items() if name in _names(config)), None)
            (of_training if part is None else of_parts[part])[name] = value
        legal = [
            *_names(TrainingConfig),
            *(name for config in _TRAINING_PARTS.values() for name in _names(config)),
        ]
        for name in of_training.keys() - set(_names(TrainingConfig)):
            raise ConfigError(f"A training run has no setting {name!r}; {nearest_name(name, legal)}")
        for name in of_training.keys() & {part for part, values in of_parts.items() if values}:
            fields_given = ", ".join(of_parts[name])
            raise ConfigError(f"{name} is given as a whole and by its fields ({fields_given}); give one of the two.")
        parts = {part: _TRAINING_PARTS[part](**of_parts[part]) for part in of_parts if part not in of_training}
        return TrainingConfig(**parts, **of_training)


_TRAINING_PARTS: dict[str, type[Any]] = {
    "data": DataConfig,
    "texts": TextsConfig,
    "dataset": DatasetConfig,
    "learning": LearningConfig,
    "checkpoints": CheckpointsConfig,
}


def _names(config: type[Any]) -> list[str]:
    return [entry.name for entry in fields(config)]
