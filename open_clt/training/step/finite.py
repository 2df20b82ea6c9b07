"""Finite steps: the checks that stop a training run whose loss or weights are not finite, in all its processes at once.

The loss and the norm of the gradient are checked at the end of every step, where Ctrl-C is checked too, so that a GPU
is not made to wait once more. The weights and the optimizer are checked before each checkpoint, and the weights at the
end of the run: nothing that is saved is replaced by NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from open_clt.errors import NotFiniteError
from open_clt.finite import check_finite, is_finite, layer_axis, nested_tensors
from open_clt.transcoders.transcoder import Transcoder

_ADVICE = (
    "lower the learning rate or the norm to which gradients are clipped, and start again or resume from a checkpoint "
    "(what was saved before is kept)"
)


def check_step(
    transcoder: Transcoder, numbers: Mapping[str, Float[Tensor, ""]], residuals: Float[Tensor, "layer"], step: int
) -> None:
    """Raise NotFiniteError in all processes if one of them has numbers of a step (its loss) that are not finite.

    ``residuals`` are the sizes of the errors of each layer, which show where the reconstruction is not finite.
    """
    if not _anywhere(transcoder, ~torch.stack([*numbers.values()]).isfinite().all()):
        return
    layers = (~residuals.isfinite()).nonzero().flatten().tolist()
    layer = transcoder.config.model_layers[layers[0]] if layers else None
    place = f", and the reconstruction of layer {layer} is not finite" if layers else ""
    name = next((name for name, number in numbers.items() if not number.isfinite()), "loss")
    raise NotFiniteError(f"The {name} of step {step} is {float(numbers[name])}{place}; {_ADVICE}.")


def check_weights(transcoder: Transcoder, step: int) -> None:
    """Raise NotFiniteError in all processes if one of them has weights that are not finite; all must call it."""
    weights = {name: tensor for name, tensor in transcoder.state_dict().items() if tensor.is_floating_point()}
    if not _anywhere(transcoder, torch.tensor(not is_finite(*weights.values()), device=transcoder.device)):
        return
    for name, tensor in weights.items():
        axes = layer_axis(name, tensor, transcoder.config.n_layers)
        layers = transcoder.config.layers
        check_finite(tensor, f"After step {step}, the weight {name}", axes=axes, layers=layers, advice=_ADVICE)
    raise NotFiniteError(f"After step {step}, weights of another process are not finite; {_ADVICE}.")


def check_optimizer(transcoder: Transcoder, states: Any, step: int) -> None:
    """Raise NotFiniteError in all processes if one of them has an optimizer with numbers that are not finite.

    ``states`` are the optimizers' states in a checkpoint; all processes must call this function.
    """
    tensors = dict(nested_tensors(states, "optimizer"))
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if not _anywhere(transcoder, torch.tensor(bool(broken), device=transcoder.device)):
        return
    for name in broken:
        check_finite(tensors[name], f"After step {step}, the state {name}", advice=_ADVICE)
    raise NotFiniteError(f"After step {step}, the optimizer of another process is not finite; {_ADVICE}.")


def _anywhere(transcoder: Transcoder, problem: Bool[Tensor, ""]) -> bool:
    """Whether any of the processes that train together has a problem."""
    peers = transcoder.peers
    return bool(peers.sum_features(peers.sum_batch(problem.int())))
