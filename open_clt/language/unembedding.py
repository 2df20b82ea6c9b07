"""The unembedding: what a direction of the residual stream adds to the logits."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt.language.language_model import LanguageModel


@torch.no_grad()
def logit_effects(model: LanguageModel, directions: Float[Tensor, "some d_model"]) -> Float[Tensor, "some vocab"]:
    """What directions of the residual stream add to each logit, less the mean over tokens.

    Direct effects, through the final norm's weight and the unembedding; the norm's denominator is left out.
    """
    norm = model.bridge.ln_final
    weight = norm.weight.float() + (1 if norm.uses_weight_offset else 0)
    directions = directions.to(model.device)
    if not norm.uses_rms_norm:
        directions = directions - directions.mean(1, keepdim=True)
    effects = (directions * weight) @ model.bridge.W_U.float()
    return (effects - effects.mean(1, keepdim=True)).cpu()
