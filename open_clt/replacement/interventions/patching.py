"""Forward passes with interventions: how far a change of features is let spread.

``Constrained``: the MLP outputs of some layers are held at what they were plus what the changed features write there.
``Iterative``: features are changed as each layer computes them from what the layers before it have become. Sources:
methods, "Constrained patching" and "Iterative patching".
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from open_clt.errors import ConfigError
from open_clt.language.frozen_hooks import PATTERN, SCALE
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
) -> Generator[dict[str, Tensor], None, None]:
    """While this is open, a forward pass is one with interventions; yields what it computes, by the hook's name."""
    model = replacement.model
    hooks = [] if before is None else _freezes(model, patching, before)
    with model.hooks(hooks):
        if isinstance(patching, Constrained):
            assert before is not None
            layers = _held_layers(model, patching)
            held = _held_outputs(replacement, interventions, before, layers)
            with running(replacement), _recording_inputs(replacement) as inputs:
                clamps = [_clamp(replacement, layer, held[layer], before, inputs) for layer in layers]
                with model.hooks(clamps), recording(replacement) as found:
                    yield found
        else:

            def change(layer: int, features: SparseFeatures) -> SparseFeatures | None:
                return changes(features, interventions, layer, start)

            errors = _errors(replacement, before) if before is not None and patching.freeze_errors else []
            with (
                _local(replacement, patching).replacing(change),
                model.hooks(errors),
                recording(replacement) as found,
            ):
                yield found


def _freezes(model: LanguageModel, patching: Patching, before: Observed) -> list[Hook]:
    """Hooks that hold attention patterns and norm denominators."""
    norms = patching.freeze_norms
    if isinstance(patching, Constrained) and norms is None:
        norms = len(_held_layers(model, patching)) == model.n_layers
    endings = tuple(ending for ending, wanted in ((PATTERN, patching.freeze_attention), (SCALE, norms)) if wanted)
    return [(name, partial(_constant, value)) for name, value in before.frozen.items() if name.endswith(endings)]


def _constant(value: Tensor, _: Tensor) -> Tensor:
    return value


def _held_layers(model: LanguageModel, patching: Constrained) -> range:
    every = range(model.n_layers)
    layers = every if patching.layers is None else patching.layers
    if not layers or layers.step != 1 or layers[0] not in every or layers[-1] not in every:
        raise ConfigError(f"layers is {layers}; it must be a range within {every}, such as range(0, {model.n_layers}).")
    return layers


def _held_outputs(
    replacement: ReplacementModel, interventions: Sequence[Intervention], before: Observed, layers: range
) -> dict[int, Tensor]:
    """What the MLP outputs are held at: as they were, plus what the changed features write."""
    held = {layer: before.outputs[layer].clone() for layer in layers}
    for source, features in enumerate(before.features):
        changed = changes(features, interventions, source, before.start)
        if changed is None:
            continue
        inputs = before.inputs[source].to(replacement.transcoder.device, replacement.transcoder.dtype)
        written_to = replacement.transcoder.write(changed, source, inputs).unbind(1)
        for target, written in enumerate(written_to, start=source):
            if target in held and target in replacement.layers:
                held[target] += written.to(held[target])
    return held


@contextmanager
def _recording_inputs(replacement: ReplacementModel) -> Generator[dict[int, Tensor], None, None]:
    """What encoders read in the pass that runs, for the skip path; empty where there is none."""
    model, config = replacement.model, replacement.transcoder.config
    found: dict[int, Tensor] = {}
    layers = range(model.n_layers) if config.skip else ()
    with model.hooks(
        [(model.hook_name(layer, config.input_hook), partial(found.__setitem__, layer)) for layer in layers]
    ):
        yield found


def _clamp(
    replacement: ReplacementModel, layer: int, held: Tensor, before: Observed, inputs: dict[int, Tensor]
) -> Hook:
    """A hook that holds one MLP output; the skip path, which is no feature, still follows its input."""
    transcoder = replacement.transcoder
    unused = unused_positions(transcoder, before.start)

    def write(_: Tensor) -> Tensor:
        if layer not in inputs or layer not in replacement.layers:
            return held[None]
        now, then = (x.to(transcoder.device, transcoder.dtype) for x in (inputs[layer][0], before.inputs[layer]))
        skipped = transcoder.offset(now, layer) - transcoder.offset(then, layer)
        skipped[:unused] = 0
        return (held + skipped.to(held))[None]

    return replacement.model.hook_name(layer, transcoder.config.target_hook), write


def _local(replacement: ReplacementModel, patching: Iterative) -> ReplacementModel:
    """The model whose MLPs answer: the transcoder alone, where errors are frozen."""
    if not (patching.freeze_errors and replacement.error_correction):
        return replacement
    return ReplacementModel(replacement.model, replacement.transcoder, layers=sorted(replacement.layers))


def _errors(replacement: ReplacementModel, before: Observed) -> list[Hook]:
    """Hooks that add what the transcoder missed of the MLP outputs as they were."""
    if not replacement.error_correction:
        return []
    transcoder, config = replacement.transcoder, replacement.transcoder.config
    unused = unused_positions(transcoder, before.start)
    inputs = before.inputs.transpose(0, 1).to(transcoder.device, transcoder.dtype)
    errors = before.outputs - transcoder.decode(list(before.features), inputs).transpose(0, 1).to(before.outputs)
    errors[:, :unused] = 0
    return [
        (replacement.model.hook_name(layer, config.target_hook), partial(torch.add, errors[layer][None]))
        for layer in sorted(replacement.layers)
    ]
