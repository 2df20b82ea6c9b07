"""The unembedding: the effect of directions of the residual stream on the logits."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt.language.language_model import LanguageModel


@torch.no_grad()
def logit_effects(model: LanguageModel, directions: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
    """Return what directions of the residual stream add to each logit, relative to the mean over all tokens.

    These are direct effects, through the weight of the final norm and the unembedding, without the denominator of the
    norm.
    """
    norm = model.bridge.ln_final
    weight = norm.weight.float() + (1 if norm.uses_weight_offset else 0)
    directions = directions.to(model.device)
    if not norm.uses_rms_norm:
        directions = directions - directions.mean(1, keepdim=True)
    effects = (directions * weight) @ model.bridge.W_U.float()
    return (effects - effects.mean(1, keepdim=True)).cpu()
