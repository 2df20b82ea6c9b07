"""Cases: configs of transcoders for the tiny models, one of every kind that attribution handles, and a prompt."""

from __future__ import annotations

from open_clt.config import (
    BatchTopKConfig,
    CrossLayerConfig,
    FixedJumpReLUConfig,
    JumpReLUConfig,
    NonlinearityConfig,
    ReLUConfig,
    TopKConfig,
)

PROMPT = "The cat sat on the dog"

KINDS: dict[str, CrossLayerConfig] = {}


def _kind(name: str, nonlinearity: NonlinearityConfig, input_hook: str, reach: int | None, skip: bool) -> None:
    KINDS[name] = CrossLayerConfig(
        n_layers=3,
        n_features=16,
        d_model=32,
        reach=reach,
        skip=skip,
        nonlinearity=nonlinearity,
        input_hook=input_hook,  # type: ignore[arg-type]
    )


_kind("clt", TopKConfig(k=3), "hook_resid_mid", None, False)
_kind("normalised clt", BatchTopKConfig(k=3), "ln2.hook_normalized", None, False)
_kind("per-layer", JumpReLUConfig(initial_threshold=0.5), "ln2.hook_normalized", 1, False)
_kind("negative activations", FixedJumpReLUConfig(), "hook_resid_mid", None, False)
_kind("skip, reach 2", ReLUConfig(), "hook_resid_mid", 2, True)
_kind("topk across layers", TopKConfig(k=3, across_layers=True), "hook_resid_mid", None, False)
_kind("topk with offsets", TopKConfig(k=3, offsets=True), "hook_resid_mid", 1, True)
_kind("normalised skip", TopKConfig(k=3), "ln2.hook_normalized", 1, True)
_kind("skip from the input of the MLP", TopKConfig(k=3), "mlp.hook_in", None, True)
