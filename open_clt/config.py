"""Every setting of OpenCLT, as frozen dataclasses.

Where there are alternatives, each is a class of its own with a ``kind``, so that a setting which only one choice
understands lives in that choice. ``config_json.py`` carries any of them through JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, Literal, TypeAlias, TypedDict

from open_clt.config_json import nearest_name
from open_clt.errors import ConfigError

InputHook: TypeAlias = str
"""Where encoders read, as every block calls it: any hook of width ``d_model``, such as those of ``MLP_INPUT_HOOKS``."""
MLP_INPUT_HOOKS = ("hook_resid_mid", "ln2.hook_normalized")
"""Where MLPs are read: the residual stream before their norm, or the normalised input before the norm's weight."""
MLP_OUTPUT_HOOK = "hook_mlp_out"


@dataclass(frozen=True, kw_only=True)
class ReLUConfig:
    """``a = max(pre, 0)``."""

    kind: Literal["relu"] = "relu"


@dataclass(frozen=True, kw_only=True)
class JumpReLUConfig:
    """``a = pre * 1[pre > threshold]`` with one learned threshold per feature (Rajamanoharan et al., 2024)."""

    kind: Literal["jumprelu"] = "jumprelu"
    initial_threshold: float = 0.03
    """Threshold every feature starts with, in units of the pre-activation."""
    bandwidth: float = 1.0
    """Width of the rectangle kernel of the straight-through estimator."""
    gradient_to_preactivation: bool = True
    """Whether the kernel also passes a gradient to the pre-activation (methods: yes)."""


@dataclass(frozen=True, kw_only=True)
class TopKConfig:
    """The ``k`` largest positive pre-activations of each token and layer (Gao et al., 2024)."""

    kind: Literal["topk"] = "topk"
    k: int = 16
    """Active features per token and layer."""
    initial_k: int | None = None
    """Active features at the first step of training, from which the number moves linearly to ``k``; None is ``k``."""
    anneal_share: float = 0.2
    """Share of training after which ``k`` is reached; only with ``initial_k``."""


@dataclass(frozen=True, kw_only=True)
class BatchTopKConfig:
    """The ``k * tokens`` largest pre-activations of a batch; a threshold at inference (Bussmann et al., 2024)."""

    kind: Literal["batchtopk"] = "batchtopk"
    k: int = 16
    """Mean active features per token and layer."""
    across_layers: bool = False
    """Rank all layers of a batch together, by activation times decoder norm."""
    threshold_momentum: float = 0.99
    """Momentum of the running estimate of the inference threshold."""
    initial_k: int | None = None
    """Mean active features at the first step of training, from which the number moves linearly to ``k``."""
    anneal_share: float = 0.2
    """Share of training after which ``k`` is reached; only with ``initial_k``."""


NonlinearityConfig: TypeAlias = ReLUConfig | JumpReLUConfig | TopKConfig | BatchTopKConfig


@dataclass(frozen=True, kw_only=True)
class CrossLayerConfig:
    """Shape and meaning of a transcoder whose features have decoders: all that its tensors do not say.

    A CLT by default; ``reach=1`` is one transcoder per layer, and if it reads where it writes, one sparse autoencoder
    per layer: ``CrossLayerConfig(reach=1, input_hook="hook_resid_post", target_hook="hook_resid_post", ...)``.
    """

    kind: Literal["cross_layer"] = "cross_layer"
    n_layers: int
    n_features: int
    """Features per layer."""
    d_model: int
    reach: int | None = None
    """Layers a feature writes to, its own included; None is all later layers (a CLT), 1 a per-layer transcoder."""
    skip: bool = False
    """Whether each layer also has a linear path from input to output."""
    nonlinearity: NonlinearityConfig = field(default_factory=TopKConfig)
    prefixes: tuple[int, ...] = ()
    """Matryoshka: the first so many features of each layer are to reconstruct on their own; rising, below n_features.

    The loss is then the sum of the reconstruction losses of each prefix and of the whole (Bussmann et al., 2025)."""
    input_hook: InputHook = "hook_resid_mid"
    """Where encoders read: any hook of the language model's blocks that carries ``d_model`` numbers a token."""
    target_hook: str = MLP_OUTPUT_HOOK
    """What is reconstructed: any such hook."""
    language_model: str | None = None
    """Name of the language model it was trained for; None when unknown."""
    use_first_position: bool = False
    """Train and use features at the first position of a text too, where activations are massive and carry no text."""

    def __post_init__(self) -> None:
        if self.reach is not None and not 1 <= self.reach <= self.n_layers:
            raise ConfigError(f"reach is {self.reach}; it must lie between 1 and n_layers = {self.n_layers}.")
        _check_shape(self)
        bounds = (0, *self.prefixes, self.n_features)
        if any(low >= high for low, high in pairwise(bounds)):
            raise ConfigError(
                f"prefixes is {self.prefixes}; they must rise, from at least 1 to less than n_features = "
                f"{self.n_features}."
            )

    def reach_of(self, source: int) -> int:
        """Number of target layers that features of layer ``source`` write to."""
        return min(self.reach or self.n_layers, self.n_layers - source)


@dataclass(frozen=True, kw_only=True)
class MoltConfig:
    """A sparse mixture of linear transforms: ``y_hat = sum_t phi(e_t . x - b_t) U_t V_t x``, one mixture per layer.

    Transforms come in groups of one rank each; a transform is a feature, whose value is its gate ``phi(...)``.
    """

    kind: Literal["molt"] = "molt"
    n_layers: int
    d_model: int
    ranks: tuple[int, ...]
    """Rank of the transforms of each group."""
    counts: tuple[int, ...]
    """Transforms of each group, per layer."""
    skip: bool = False
    """Whether each layer also has a linear path from input to output."""
    nonlinearity: NonlinearityConfig = field(default_factory=TopKConfig)
    """phi of the gates."""
    input_hook: InputHook = "hook_resid_mid"
    """Where gates and transforms read: any hook of the blocks that carries ``d_model`` numbers a token."""
    target_hook: str = MLP_OUTPUT_HOOK
    """What is reconstructed: any such hook."""
    language_model: str | None = None
    """Name of the language model it was trained for; None when unknown."""
    use_first_position: bool = False
    """Train and use features at the first position of a text too, where activations are massive and carry no text."""

    def __post_init__(self) -> None:
        if not self.ranks or len(self.ranks) != len(self.counts) or min(*self.ranks, *self.counts) < 1:
            raise ConfigError(
                f"ranks is {self.ranks} and counts {self.counts}; give both for each group, all of them at least 1."
            )
        _check_shape(self)

    @property
    def n_features(self) -> int:
        """Transforms per layer."""
        return sum(self.counts)

    def reach_of(self, source: int) -> int:
        """Number of target layers that transforms of layer ``source`` write to: their own."""
        return 1


TranscoderConfig: TypeAlias = CrossLayerConfig | MoltConfig
"""Every kind of transcoder; ``make_transcoder`` builds one of each."""


def _check_shape(config: TranscoderConfig) -> None:
    for name in ("n_layers", "n_features", "d_model"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} is {getattr(config, name)}; it must be at least 1.")
    nonlinearity = config.nonlinearity
    if not isinstance(nonlinearity, TopKConfig | BatchTopKConfig):
        return
    for name, k in (("k", nonlinearity.k), ("initial_k", nonlinearity.initial_k)):
        if k is not None and not 1 <= k <= config.n_features:
            raise ConfigError(f"{name} is {k}; it must lie between 1 and n_features = {config.n_features}.")
    if not 0 < nonlinearity.anneal_share <= 1:
        raise ConfigError(f"anneal_share is {nonlinearity.anneal_share}; it must lie above 0 and be at most 1.")


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
        _check_counts(self, "batch_size", "epochs", "context_length", "harvest_batch_size", "max_steps")
        _check_above_zero(self, "memory_limit", "max_norm_ratio")


@dataclass(frozen=True, kw_only=True)
class TextsConfig:
    """Where texts come from, how contexts are cut from them, and which contexts are held out."""

    source: str | None = None
    """A text, .jsonl or .parquet file, or a Hugging Face data set: its name on the hub, or its local directory."""
    column: str = "text"
    """Column that holds the text, where rows have several."""
    subset: str | None = None
    """Part of a data set that has several (its configuration)."""
    split: str = "train"
    """Split of a data set."""
    streaming: bool = True
    """Read a data set row by row as it is needed, and download no more of it."""
    from_start: bool = False
    """Begin every context where a text begins, and drop the rest of a text that does not fit: for short texts."""
    held_out_contexts: int | None = None
    """Contexts from the beginning that are measured on and never trained on; 0 holds none out.

    None holds out 64, or a tenth of the contexts where the texts fill fewer than 640."""
    max_contexts: int | None = None
    """Contexts to train on at most, after those that are held out; None is all that the texts fill."""

    def __post_init__(self) -> None:
        _check_counts(self, "max_contexts")
        if self.held_out_contexts is not None and self.held_out_contexts < 0:
            raise ConfigError(f"held_out_contexts is {self.held_out_contexts}; it must be at least 0.")


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
        _check_shares(self, "warmup_share", "decay_share", "initial_firing_rate")
        _check_above_zero(self, "learning_rate")
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
        _check_counts(self, "every")


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
        _check_above_zero(self, "gradient_clip")

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
        _check_counts(self, "max_feature_nodes")
        if self.graphs < 0:
            raise ConfigError(f"graphs is {self.graphs}; it must be at least 0.")


def _check_counts(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1.")


def _check_shares(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < 1:
            raise ConfigError(f"{name} is {value}; it is a share, from 0 up to, not including, 1.")


def _check_above_zero(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise ConfigError(f"{name} is {value}; it must be above 0.")


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
