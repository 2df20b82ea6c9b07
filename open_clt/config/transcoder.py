"""Settings of transcoders: their shape, what they read and write, and their nonlinearity."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, TypeAlias

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
