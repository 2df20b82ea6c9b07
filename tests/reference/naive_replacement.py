"""Slow replacement and generation: one forward pass per layer, and one whole forward pass per token."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

import torch
from torch.nn import functional

from open_clt.config import SamplingConfig
from open_clt.language.language_model import Hook, LanguageModel
from open_clt.replacement.comparison import Comparison, LogitComparison
from open_clt.replacement.generation import draw
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.sparse.codes import SparseFeatures
from open_clt.transcoders.transcoder import Transcoder
from tests.reference.dense_transcoder import preactivations_by_loops


def constant(value: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return value


def replaced_logits(
    model: LanguageModel,
    transcoder: Transcoder,
    tokens: torch.Tensor,
    layers: Collection[int],
    encode: Callable[[torch.Tensor, int], SparseFeatures] | None = None,
) -> torch.Tensor:
    """Logits with MLPs replaced: each output is computed with the outputs of all earlier layers held constant.

    ``encode`` replaces the transcoder's ``encode_layer``.
    """
    encode = encode or transcoder.encode_layer
    inputs: list[torch.Tensor] = []
    clamps: list[Hook] = []
    for layer in range(model.n_layers):
        with model.hooks(clamps):
            captured = model.capture(tokens, transcoder.config.input_hook, transcoder.config.target_hook)
        inputs.append(captured.inputs[:, :, layer].flatten(0, 1))
        output = captured.targets[:, :, layer].clone()
        if layer in layers:
            replaced = transcoder.offset(inputs[layer], layer)
            for source in range(layer + 1):
                if layer < source + transcoder.config.reach_of(source):
                    features = encode(inputs[source], source)
                    replaced = replaced + transcoder.write(features, source, inputs[source])[:, layer - source]
            start = 0 if transcoder.config.use_first_position else 1
            output[:, start:] = replaced.view_as(output)[:, start:]
        clamps.append((model.hook_name(layer, transcoder.config.target_hook), partial(constant, output)))
    with model.hooks(clamps):
        return model.logits(tokens)


@torch.no_grad()
def compared_slowly(replacement: ReplacementModel, text: str) -> Comparison:
    """A comparison without continuations: whole logits of three models that run one after the other, by definition."""
    model, transcoder = replacement.model, replacement.transcoder
    tokens, first = model.tokenize(text)[None], transcoder.first_position
    outputs = model.capture(tokens, transcoder.config.input_hook, transcoder.config.target_hook).targets
    with replacement.ablating(outputs[0, first:].mean(0)):
        ablated = model.logits(tokens)
    original, replaced = model.logits(tokens), replacement.logits(tokens)
    before, after, without = (logits[0, first:-1].float() for logits in (original, replaced, ablated))
    right = tokens[0, first + 1 :]
    entropies = [functional.cross_entropy(logits, right).item() for logits in (before, after, without)]
    divergence = functional.kl_div(after.log_softmax(-1), before.log_softmax(-1), log_target=True, reduction="sum")
    agreement = (before.argmax(-1) == after.argmax(-1)).float().mean().item()
    centred = [logits - logits.mean(-1, keepdim=True) for logits in (before, after)]
    return Comparison(
        logits=LogitComparison(entropies[0], entropies[1], divergence.item() / len(right), agreement),
        cosine=functional.cosine_similarity(*centred, dim=-1).mean().item(),
        mean_squared_error=(after - before).square().mean().item(),
        cross_entropy_ablated=entropies[2],
        continuations=None,
        prompt=text,
    )


@torch.no_grad()
def encode_above_bounds(
    model: LanguageModel, transcoder: Transcoder, tokens: torch.Tensor, total: int
) -> Callable[[torch.Tensor, int], SparseFeatures]:
    """A function that encodes one layer of TopK across layers, token by token and feature by feature.

    A feature is active if its activation times its decoder norm is above the mean of the ``total``-th largest such
    number of its token and the next one, in the original model.
    """
    norms = transcoder.decoder_norms()
    inputs = model.capture(tokens, transcoder.config.input_hook).inputs.flatten(0, 1)
    scores = (preactivations_by_loops(transcoder, inputs).clamp(min=0) * norms).flatten(1)
    bounds = [sum(sorted(token.tolist(), reverse=True)[total - 1 : total + 1]) / 2 for token in scores]

    def encode(of_layer: torch.Tensor, layer: int) -> SparseFeatures:
        repeated = of_layer[:, None].expand(-1, transcoder.config.n_layers, -1)
        features = preactivations_by_loops(transcoder, repeated)[:, layer].detach().clamp(min=0)
        for token, bound in zip(features, bounds, strict=True):
            for feature in range(len(token)):
                if token[feature] * norms[layer, feature] <= bound:
                    token[feature] = 0
        return SparseFeatures.from_dense(features)

    return encode


def generate_without_cache(
    logits: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor, sampling: SamplingConfig
) -> list[int]:
    """Draw tokens with a forward pass over the whole text for each token."""
    generator = torch.Generator().manual_seed(sampling.seed)
    drawn: list[int] = []
    for _ in range(sampling.max_new_tokens):
        so_far = torch.cat([tokens, tokens.new_tensor(drawn)])
        drawn.append(draw(logits(so_far[None])[0, -1], sampling, generator))
    return drawn
