"""Patching: forward passes with interventions, and the limits of their effects.

With ``Constrained``, the MLP outputs of some layers are held at their former values plus what the changed features
write there. With ``Iterative``, each layer computes its features from the changed outputs of earlier layers, and then
the interventions on this layer are applied. Sources: Ameisen et al. (2025), "Constrained patching" and "Iterative
patching".
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt.errors import ConfigError
from open_clt.language.frozen_hooks import PATTERN, SCALE, freezing
from open_clt.language.language_model import Hook, LanguageModel
from open_clt.replacement.interventions.intervention import Constrained, Intervention, Iterative, Patching, changes
from open_clt.replacement.interventions.observation import Observed, recording, running
from open_clt.replacement.model import ReplacementModel, unused_positions
from open_clt.transcoders.sparse.codes import SparseFeatures


@contextmanager
def patched(
    replacement: ReplacementModel,
    interventions: Sequence[Intervention],
    patching: Patching,
    before: Observed | None,
    start: int = 0,
    *,
    bounds: Float[Tensor, "position"] | None,
) -> Generator[dict[str, Tensor], None, None]:
    """While this is open, a forward pass has interventions; yields the activations it computes, by hook name.

    ``before`` is the run without interventions (None if the patching holds and freezes nothing), ``start`` is the
    position of the pass's first token, and ``bounds`` are those of its tokens.
    """
    model = replacement.model
    hooks = [] if before is None else _freezes(model, patching, before)
    with model.hooks(hooks):
        if isinstance(patching, Constrained):
            assert before is not None
            layers = _held_layers(model, patching)
            held = _held_outputs(replacement, interventions, before, layers)
            with running(replacement, bounds), _recording_inputs(replacement) as inputs:
                clamps = [_clamp(replacement, layer, held[layer], before, inputs) for layer in layers]
                with model.hooks(clamps), recording(replacement) as activations:
                    yield activations
        else:

            def change(layer: int, features: SparseFeatures) -> SparseFeatures | None:
                return changes(features, interventions, layer, start)

            errors = _errors(replacement, before) if before is not None and patching.freeze_errors else []
            with (
                _local(replacement, patching).replacing(change, bounds=bounds),
                model.hooks(errors),
                recording(replacement) as activations,
            ):
                yield activations


def _freezes(model: LanguageModel, patching: Patching, before: Observed) -> list[Hook]:
    """Hooks that freeze attention patterns and norm denominators at the values of the run without interventions."""
    freeze_norms = patching.freeze_norms
    if isinstance(patching, Constrained) and freeze_norms is None:
        freeze_norms = len(_held_layers(model, patching)) == model.n_layers
    choices = ((PATTERN, patching.freeze_attention), (SCALE, freeze_norms))
    endings = tuple(ending for ending, freeze in choices if freeze)
    return freezing(model, {name: value for name, value in before.frozen.items() if name.endswith(endings)})


def _held_layers(model: LanguageModel, patching: Constrained) -> range:
    model_layers = range(model.n_layers)
    layers = model_layers if patching.layers is None else patching.layers
    if not layers or layers.step != 1 or layers[0] not in model_layers or layers[-1] not in model_layers:
        raise ConfigError(f"layers is {layers}; it must be a range within {model_layers}, not empty, with step 1.")
    return layers


def _held_outputs(
    replacement: ReplacementModel, interventions: Sequence[Intervention], before: Observed, layers: range
) -> dict[int, Tensor]:
    """Compute the values that MLP outputs are held at: the former outputs plus what the changed features write."""
    held = {layer: before.outputs[layer].clone() for layer in layers}
    model_layers = replacement.transcoder.config.model_layers
    for place, source in enumerate(model_layers):
        added = changes(before.features[source], interventions, source, before.start)
        if added is None:
            continue
        inputs = before.inputs[source].to(replacement.transcoder.device, replacement.transcoder.dtype)
        writes = replacement.transcoder.write(added, place, inputs).unbind(1)
        for target, write in zip(model_layers[place:], writes, strict=False):
            if target in held and target in replacement.layers:
                held[target] += write.to(held[target])
    return held


@contextmanager
def _recording_inputs(replacement: ReplacementModel) -> Generator[dict[int, Tensor], None, None]:
    """While this is open, keep what the encoders read, by layer; keep nothing if the transcoder has no skip path."""
    model, config = replacement.model, replacement.transcoder.config
    inputs: dict[int, Tensor] = {}
    layers = config.model_layers if config.skip else ()
    with model.hooks(
        [(model.hook_name(layer, config.input_hook), partial(inputs.__setitem__, layer)) for layer in layers]
    ):
        yield inputs


def _clamp(
    replacement: ReplacementModel, layer: int, held: Tensor, before: Observed, inputs: dict[int, Tensor]
) -> Hook:
    """A hook that holds one MLP output; the skip path, which is not a feature, still follows its input."""
    transcoder = replacement.transcoder
    unused = unused_positions(transcoder, before.start)

    def write(_: Tensor) -> Tensor:
        if layer not in inputs or layer not in replacement.layers:
            return held[None]
        place = transcoder.config.place_of(layer)
        new, old = (x.to(transcoder.device, transcoder.dtype) for x in (inputs[layer][0], before.inputs[layer]))
        skip_change = transcoder.offset(new, place) - transcoder.offset(old, place)
        skip_change[:unused] = 0
        return (held + skip_change.to(held))[None]

    return replacement.model.hook_name(layer, transcoder.config.target_hook), write


def _local(replacement: ReplacementModel, patching: Iterative) -> ReplacementModel:
    """The model that computes MLP outputs: without error correction if the errors are frozen, since hooks add them."""
    if not (patching.freeze_errors and replacement.error_correction):
        return replacement
    return ReplacementModel(replacement.model, replacement.transcoder, layers=sorted(replacement.layers))


def _errors(replacement: ReplacementModel, before: Observed) -> list[Hook]:
    """Hooks that add the errors of the run without interventions: its MLP outputs less their reconstruction."""
    if not replacement.error_correction:
        return []
    transcoder, config = replacement.transcoder, replacement.transcoder.config
    unused, layers = unused_positions(transcoder, before.start), list(config.model_layers)
    inputs = before.inputs[layers].transpose(0, 1).to(transcoder.device, transcoder.dtype)
    decoded = transcoder.decode([before.features[layer] for layer in layers], inputs).transpose(0, 1)
    errors = before.outputs[layers] - decoded.to(before.outputs)
    errors[:, :unused] = 0
    return [
        (
            replacement.model.hook_name(layer, config.target_hook),
            partial(torch.add, errors[config.place_of(layer)][None]),
        )
        for layer in sorted(replacement.layers)
    ]
