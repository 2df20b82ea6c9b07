"""Attribution: from a prompt to its attribution graph.

1. One forward pass freezes the model on the prompt: attention patterns, norm denominators and active features are held
   at their values (the local replacement model of Ameisen et al., 2025).
2. The targets (by default the likeliest next tokens) and the active features become rows: each is a linear function of
   the residual stream, which is walked down with explicit adjoints (``adjoint.py``).
3. With a budget, rows are computed only for the features with the most influence, which are found as the graph grows.
   The other features are folded into the error node of their layer and position, so that the scores count them as
   unexplained.
4. Rows and columns become an ``AttributionGraph``.

``attribute_all`` does this for several prompts.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict, Unpack

import torch
from jaxtyping import Int
from torch import Tensor

from open_clt.attribution.budget import MEMORY_WAYS, Explored, explore
from open_clt.attribution.sources import Sources, attributable, find_sources
from open_clt.attribution.targets import Resolved, resolve_targets
from open_clt.config.arguments import checked_arguments
from open_clt.errors import AttributionError, OpenCLTError
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.info import GraphInfo, GraphSettings
from open_clt.graphs.nodes import NodeTable
from open_clt.graphs.targets import SalientLogits, Target
from open_clt.language.fits import check_fits
from open_clt.language.language_model import LanguageModel
from open_clt.language.linear_path import read_linear_path
from open_clt.language.prompts import Prompt, prompt_tokens
from open_clt.memory import memory_errors
from open_clt.progress import progress_bar
from open_clt.transcoders.formats.fingerprint import fingerprint
from open_clt.transcoders.transcoder import Transcoder

logger = logging.getLogger(__name__)


class AttributionSettings(TypedDict, total=False):
    """The keyword arguments of ``attribute``, for functions that pass them on."""

    targets: Target | Sequence[Target] | None
    max_feature_nodes: int | None
    compatible: bool
    max_logits: int
    logit_probability: float
    batch_size: int
    chat: bool


@checked_arguments
@memory_errors("The attribution graph", MEMORY_WAYS)
@torch.no_grad()
def attribute(
    model: LanguageModel,
    transcoder: Transcoder | str | Path,
    prompt: Prompt,
    *,
    targets: Target | Sequence[Target] | None = None,
    max_feature_nodes: int | None = None,
    compatible: bool = False,
    max_logits: int = 10,
    logit_probability: float = 0.95,
    batch_size: int = 256,
    chat: bool = False,
) -> AttributionGraph:
    """Explain a model's prediction by the transcoder's features: every edge into every target and active feature.

    ``transcoder`` may also be a source of ``load_transcoder``, or ``neurons``: the model's own MLP neurons with frozen
    gates, whose errors are zero (docs/neurons.md). All neurons are active, so a budget saves much memory.

    ``prompt`` is a text, to which BOS is prepended, or tokens, which are used unchanged; ``chat`` applies the chat
    template of the model to a text or to messages (``open_clt.language.prompts``). By default, ``targets`` are the
    fewest likeliest next tokens that together hold ``logit_probability``, but at most ``max_logits``.
    ``max_feature_nodes`` is the budget: the largest number of features that are attributed. The rows of a complete
    graph add up to each target's total. A ``compatible`` graph leaves out positional embeddings, biases and the MLP
    outputs of the first position, and equals circuit-tracer's graph. Features are not used at the first position unless
    the transcoder's config says ``use_first_position``. ``batch_size`` affects memory and speed only.

    The memory needed beyond the model and the transcoder is bounded by the budget and the batch size: at most 4 bytes
    for each entry of a row, a few times 64 MB for a batch, at most 512 MB of decoder rows, and the graph's edges. With
    GPT-2's shape this is 0.3 GB for 1,024 features on 24 tokens, and 0.9 GB for 2,048 features on 128 tokens
    (``benchmarks/attribution.py``). A graph of every feature takes 12 bytes for an edge while it is put together, and 8
    afterwards; the number of edges grows with the square of the number of active features (docs/scaling.md).

    Raises ConfigError if the transcoder does not fit the model, AttributionError if the prompt, the targets or the
    transcoder cannot be used, LanguageModelError if the frozen model is not linear, ResourceError if memory is too
    small, and NotFiniteError if the model or the transcoder does not compute finite numbers for the prompt.
    """
    tokens = _tokens(model, prompt, chat=chat)
    transcoder = attributable(transcoder, model)
    mark = _mark(transcoder)
    check_fits(transcoder, model, same_device=True)
    _check_counts(max_feature_nodes, batch_size)
    path = read_linear_path(model, tokens, transcoder.config.input_hook, transcoder.config.target_hook)
    sources = find_sources(path, transcoder)
    if not sources.features.value.numel():
        raise AttributionError("No feature is active on this prompt; use another prompt, or a transcoder that fires.")
    default = SalientLogits(max_count=max_logits, probability=logit_probability)
    requested = [default] if targets is None else list(targets) if isinstance(targets, Sequence) else [targets]
    resolved = resolve_targets(model, sources, requested)
    explored = explore(sources, resolved, max_feature_nodes, batch_size=batch_size, compatible=compatible)
    logger.info("attributed %d of %d active features", int(explored.mask.sum()), explored.mask.shape[0])
    settings = GraphSettings(
        targets=resolved.targets,
        max_feature_nodes=max_feature_nodes,
        use_first_position=transcoder.config.use_first_position,
        batch_size=batch_size,
    )
    text = prompt if isinstance(prompt, str) and not chat else model.decode(tokens)
    info = _info(model, sources, prompt=text, target_names=resolved.names, compatible=compatible, settings=settings)
    info = replace(info, influence_left_out=explored.influence_left_out, transcoder_hash=mark)
    return _graph(sources, resolved, explored, info)


@checked_arguments
def attribute_all(
    model: LanguageModel,
    transcoder: Transcoder | str | Path,
    prompts: Sequence[Prompt],
    *,
    progress: bool = True,
    **settings: Unpack[AttributionSettings],
) -> Iterator[AttributionGraph]:
    """Yield the graph of each prompt as soon as it is computed; shows a progress bar in a terminal or notebook.

    ``settings`` are the keyword arguments of ``attribute``, and hold for all prompts. The tokens of all prompts are
    checked before the first prompt is attributed. Raises an AttributionError that names the prompt.
    """
    transcoder = attributable(transcoder, model)  # once for all prompts
    if isinstance(prompts, str):
        raise AttributionError(f"prompts is a single string, {prompts[:40]!r}; give a list of prompts.")
    for index, prompt in enumerate(prompts):
        with _naming_prompt(prompts, index):
            _tokens(model, prompt, chat=settings.get("chat", False))
    with progress_bar("attributing", shown=progress and len(prompts) > 1, transient=True) as bar:
        for index, prompt in enumerate(bar.track(prompts)):
            with _naming_prompt(prompts, index):
                graph = attribute(model, transcoder, prompt, **settings)
            yield graph


@contextmanager
def _naming_prompt(prompts: Sequence[Prompt], index: int) -> Generator[None, None, None]:
    """Add the prompt to the message of an error that the block raises, if there are several prompts."""
    try:
        yield
    except OpenCLTError as error:
        if len(prompts) == 1:
            raise
        prompt = prompts[index]
        excerpt = f", {prompt[:40]!r}" if isinstance(prompt, str) else ""
        raise AttributionError(f"Prompt {index + 1} of {len(prompts)}{excerpt}: {error}") from error


def _tokens(model: LanguageModel, prompt: Prompt, *, chat: bool) -> Int[Tensor, "position"]:
    """The prompt's tokens; raises TextError or AttributionError if the prompt cannot be attributed."""
    tokens = prompt_tokens(model, prompt, chat=chat)
    if isinstance(prompt, str) and not chat and len(tokens) == 2:
        # Nothing but the token itself could explain the prediction. It can still be given as token ids, with BOS.
        raise AttributionError(f"The prompt {prompt!r} is one token; give a prompt of at least two.")
    if len(tokens) < 2:
        raise AttributionError(f"The prompt has {len(tokens)} token; give at least two, BOS among them.")
    return tokens


def _mark(transcoder: Transcoder) -> str | None:
    """The fingerprint of a transcoder in memory; one that stays in its files may be on a server, so none is read."""
    return fingerprint(transcoder) if transcoder.stored is None else None


def _check_counts(max_feature_nodes: int | None, batch_size: int) -> None:
    for name, value in (("max_feature_nodes", max_feature_nodes), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise AttributionError(f"{name} is {value}; it must be at least 1.")


def _info(
    model: LanguageModel,
    sources: Sources,
    *,
    prompt: str,
    target_names: tuple[str, ...],
    compatible: bool,
    settings: GraphSettings,
) -> GraphInfo:
    """The description of a graph: its prompt and targets, and what it was computed with."""
    tokens = sources.path.tokens
    return GraphInfo(
        model=model.name,
        transcoder=sources.transcoder.config.language_model,
        prompt=prompt,
        tokens=tuple(tokens.tolist()),
        token_strings=tuple(model.token_strings(tokens)),
        target_names=target_names,
        n_layers=model.n_layers,
        n_active_features=sources.features.value.shape[0],
        compatible=compatible,
        settings=settings,
        versions=_versions(),
    )


def _graph(sources: Sources, resolved: Resolved, explored: Explored, info: GraphInfo) -> AttributionGraph:
    """Build the graph; its nodes are the explored features by layer, then the other sources, then the targets."""
    table, columns = sources.nodes(), sources.columns
    table.total[columns.features] = explored.totals
    from_columns = explored.columns[: -len(resolved.seeds)]
    return AttributionGraph(NodeTable.stacked([table[from_columns], resolved.nodes]), explored.edges, info)


def _versions() -> dict[str, str]:
    """Versions of the packages that compute a graph; a package that is not installed is left out."""
    versions: dict[str, str] = {}
    for name in ("open-clt", "torch", "transformer-lens"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            logger.debug("%s is not installed as a package, so the graph does not name its version", name)
    return versions
