"""Every setting of OpenCLT, as frozen dataclasses.

Where there are alternatives, each is a class of its own with a ``kind``, so that a setting which only one choice
understands lives in that choice. ``to_dict`` and ``from_dict`` carry any of them through JSON; a key that no
setting has is an error that suggests the nearest name.
"""

from __future__ import annotations

import difflib
import types
import typing
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar, Union, cast

from open_clt.errors import ConfigError

InputHook: TypeAlias = Literal["hook_resid_mid", "ln2.hook_normalized"]
"""Where encoders read: the residual stream before the MLP, or the normalised MLP input before LayerNorm's weight."""


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


NonlinearityConfig: TypeAlias = ReLUConfig | JumpReLUConfig | TopKConfig | BatchTopKConfig


@dataclass(frozen=True, kw_only=True)
class TranscoderConfig:
    """Shape and meaning of a transcoder: all that is needed, beside its tensors, to use it."""

    n_layers: int
    n_features: int
    """Features per layer."""
    d_model: int
    reach: int | None = None
    """Layers a feature writes to, its own included; None is all later layers (a CLT), 1 a per-layer transcoder."""
    skip: bool = False
    """Whether each layer also has a linear path from input to output."""
    nonlinearity: NonlinearityConfig = field(default_factory=TopKConfig)
    input_hook: InputHook = "hook_resid_mid"
    target_hook: Literal["hook_mlp_out"] = "hook_mlp_out"
    language_model: str | None = None
    """Name of the language model it was trained for; None when unknown."""

    def __post_init__(self) -> None:
        for name in ("n_layers", "n_features", "d_model"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.reach is not None and not 1 <= self.reach <= self.n_layers:
            raise ConfigError(f"reach is {self.reach}; it must lie between 1 and n_layers = {self.n_layers}.")
        k = getattr(self.nonlinearity, "k", 1)
        if not 1 <= k <= self.n_features:
            raise ConfigError(f"k is {k}; it must lie between 1 and n_features = {self.n_features}.")

    def reach_of(self, source: int) -> int:
        """Number of target layers that features of layer ``source`` write to."""
        return min(self.reach or self.n_layers, self.n_layers - source)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Coefficients of the training loss (algorithm notes: reconstruction, sparsity, pre-activation, AuxK)."""

    sparsity: float = 0.0
    """lambda of ``sum tanh(c * |W_dec| * a)``; not needed by TopK and BatchTopK."""
    sparsity_steepness: float = 4.0
    """c of the tanh penalty."""
    sparsity_warmup: float = 0.5
    """Share of training over which lambda rises linearly from zero."""
    preactivation: float = 0.0
    """Coefficient of ``sum relu(threshold - pre) * |W_dec|`` over dead features."""
    auxiliary: float = 1 / 32
    """Weight of AuxK: dead features reconstruct what the living leave over."""
    auxiliary_k: int = 32
    """Dead features per token and layer that AuxK uses."""
    dead_after_tokens: int = 50_000
    """A feature silent for this many tokens counts as dead."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a transcoder is trained: batches, steps, optimizer, schedule, seed."""

    batch_size: int = 1024
    """Tokens per step."""
    epochs: int = 1
    """Passes over the texts."""
    max_steps: int | None = None
    """Train for exactly this many steps, over as many epochs as that takes; None is ``epochs`` epochs."""
    learning_rate: float = 1e-3
    warmup_share: float = 0.05
    """Share of steps over which the learning rate rises from zero."""
    decay_share: float = 0.3
    """Final share of steps over which the learning rate falls linearly to zero."""
    gradient_clip: float = 1.0
    loss: LossConfig = field(default_factory=LossConfig)
    skip_first_position: bool = True
    """Leave the first position of each context out: its activations are massive and carry no text."""
    max_norm_ratio: float | None = 10.0
    """Leave out tokens whose input norm exceeds this many times the layer's median; None keeps all."""
    held_out_share: float = 0.1
    """Share of the contexts kept for the final metrics, never trained on."""
    context_length: int = 128
    """Tokens per packed context, BOS included."""
    harvest_batch_size: int = 16
    """Contexts per forward pass of the language model."""
    memory_limit: float = 2.0
    """Gigabytes of activations kept in memory: if all fit, each text is read once; else once per epoch."""
    storage_dtype: Literal["float32", "bfloat16"] = "float32"
    """How activations are kept in memory; bfloat16 takes half the room and rounds to three digits."""
    initial_firing_rate: float | None = None
    """Set encoder biases from data so that each feature fires on this share of tokens; None leaves them zero."""
    checkpoint_every: int = 1000
    """Steps between checkpoints to resume from; only where there is an output directory."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "context_length", "harvest_batch_size", "checkpoint_every", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")
        for name in ("warmup_share", "decay_share", "held_out_share", "initial_firing_rate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"{name} is {value}; it is a share, from 0 up to, not including, 1.")
        for name in ("learning_rate", "gradient_clip", "memory_limit", "max_norm_ratio"):
            value = getattr(self, name)
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


Config = TypeVar("Config")


def to_dict(config: object) -> dict[str, Any]:
    """Turn a config into plain JSON-ready values, nested configs included."""
    if not is_dataclass(config):
        raise ConfigError(f"{config!r} is no config.")
    return {f.name: _plain(getattr(config, f.name)) for f in fields(config)}


def from_dict(kind: type[Config], values: dict[str, Any]) -> Config:
    """Build a config of class ``kind`` from plain values; raises ConfigError on unknown or missing keys."""
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(cast(Any, kind))}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
            raise ConfigError(f"{kind.__name__} has no setting {key!r}; {hint}")
    for name, f in known.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{kind.__name__} needs the setting {name!r}, which is missing.")
    return kind(**{key: _typed(hints[key], value, f"{kind.__name__}.{key}") for key, value in values.items()})


def _plain(value: object) -> Any:
    return to_dict(value) if is_dataclass(value) else value


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Check ``value`` against a field's type, and build nested configs."""
    if is_dataclass(hint) and isinstance(value, dict):
        return from_dict(cast(type[Any], hint), cast(dict[str, Any], value))
    if typing.get_origin(hint) in (Union, types.UnionType):
        return _one_of(typing.get_args(hint), value, where)
    if typing.get_origin(hint) is Literal:
        legal = isinstance(value, str) and value in typing.get_args(hint)
    elif hint is float:
        legal = isinstance(value, int | float) and not isinstance(value, bool)
    elif hint is int:
        legal = isinstance(value, int) and not isinstance(value, bool)
    else:
        legal = isinstance(value, cast(type, hint))
    if not legal:
        expected = " or ".join(map(repr, typing.get_args(hint))) or getattr(hint, "__name__", str(hint))
        raise ConfigError(f"{where} is {value!r}; it must be {expected}.")
    return value


def _one_of(options: tuple[Any, ...], value: Any, where: str) -> Any:
    """Pick the alternative that a value belongs to: by its ``kind`` if it is a config, else by its type."""
    configs = {cast(Any, option).kind: option for option in options if is_dataclass(option)}
    if configs and isinstance(value, dict):
        values = cast(dict[str, Any], value)
        if values.get("kind") not in configs:
            raise ConfigError(f"{where}.kind is {values.get('kind')!r}; it must be one of {', '.join(configs)}.")
        return from_dict(cast(type[Any], configs[values["kind"]]), values)
    for option in options:
        try:
            return _typed(option, value, where)
        except (ConfigError, TypeError):
            continue
    names = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    raise ConfigError(f"{where} is {value!r}; it must be {names}.")
