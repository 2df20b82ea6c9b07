"""Attribution: from a prompt to the graph of what caused what.

1. One forward pass freezes the model on the prompt: attention patterns, norm denominators, active features (local
   replacement model, Ameisen et al., 2025).
2. The targets (by default the likeliest next tokens) and the active features become rows: each is a linear function of
   the residual stream, walked down with explicit adjoints (``adjoint.py``).
3. With a budget, rows are computed for the features that matter most, found as the graph grows; features that were
   never explored are folded into the error node of their layer and position, so that the scores stay honest.
4. Rows and columns become an ``AttributionGraph``.

``attribute_all`` does this for one prompt after another.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TypedDict, Unpack

import torch
from jaxtyping import Int
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from open_clt.attribution.budget import Explored, explore
from open_clt.attribution.sources import Sources, attributable, find_sources
from open_clt.attribution.targets import Resolved, resolve_targets
from open_clt.errors import AttributionError, OpenCLTError
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.influence import Edges
from open_clt.graphs.info import GraphInfo, GraphSettings
from open_clt.graphs.nodes import NodeTable
from open_clt.graphs.targets import SalientLogits, Target
from open_clt.language.fits import check_fits
from open_clt.language.language_model import LanguageModel
from open_clt.language.linear_path import read_linear_path
from open_clt.transcoders.transcoder import Transcoder

logger = logging.getLogger(__name__)


class AttributionSettings(TypedDict, total=False):
    """The settings of ``attribute`` as keyword arguments of those who hand them on."""

    targets: Target | Sequence[Target] | None
    max_feature_nodes: int | None
    compatible: bool
    max_logits: int
    logit_probability: float
    batch_size: int


@torch.no_grad()
def attribute(
    model: LanguageModel,
    transcoder: Transcoder,
    prompt: str | Sequence[int] | Int[Tensor, "position"],
    *,
    targets: Target | Sequence[Target] | None = None,
    max_feature_nodes: int | None = None,
    compatible: bool = False,
    max_logits: int = 10,
    logit_probability: float = 0.95,
    batch_size: int = 256,
) -> AttributionGraph:
    """Explain a model's prediction by the transcoder's features: every edge into every target and active feature.

    ``prompt`` is a text (BOS is put before it) or tokens as they are. ``targets`` default to the fewest likeliest
    tokens that hold ``logit_probability``, ``max_logits`` at most. ``max_feature_nodes`` bounds how many features are
    attributed. A complete graph's rows add up to each target's total; a ``compatible`` one leaves out positional
    embeddings, biases and the MLP outputs of the first position, and equals circuit-tracer's. Features are not used at
    the first position unless the transcoder's config says ``use_first_position``. ``batch_size`` is a matter of memory
    and speed only.

    Memory beyond the model's and the transcoder's is bounded by the budget and the batch: 4 bytes at most for every
    attributed row and column, a few times 64 MB for a batch, at most 512 MB of decoder rows, and the graph's edges
    (GPT-2's shape: 0.3 GB for 1,024 features on 24 tokens, 0.9 GB for 2,048 on 128; ``benchmarks/attribution.py``).

    Raises ConfigError if the transcoder does not fit the model, AttributionError if prompt, targets and transcoder do
    not fit together, and LanguageModelError if the model is not linear once frozen.
    """
    tokens = _tokens(model, prompt)
    transcoder = attributable(transcoder)
    check_fits(transcoder, model, same_device=True)
    _check_counts(max_feature_nodes, batch_size)
    path = read_linear_path(model, tokens, transcoder.config.input_hook)
    sources = find_sources(path, transcoder)
    if not sources.features.value.numel():
        raise AttributionError("No feature is active on this prompt; use another prompt, or a transcoder that fires.")
    default = SalientLogits(max_count=max_logits, probability=logit_probability)
    wanted = [default] if targets is None else list(targets) if isinstance(targets, Sequence) else [targets]
    resolved = resolve_targets(model, sources, wanted)
    explored = explore(sources, resolved, max_feature_nodes, batch_size=batch_size, compatible=compatible)
    logger.info("attributed %d of %d active features", int(explored.mask.sum()), explored.mask.shape[0])
    settings = GraphSettings(
        targets=resolved.targets,
        max_feature_nodes=max_feature_nodes,
        use_first_position=transcoder.config.use_first_position,
        batch_size=batch_size,
    )
    info = GraphInfo(
        model=model.name,
        transcoder=transcoder.config.language_model,
        prompt=prompt if isinstance(prompt, str) else model.decode(tokens),
        tokens=tuple(tokens.tolist()),
        token_strings=tuple(model.token_strings(tokens)),
        target_names=resolved.names,
        n_layers=model.n_layers,
        n_active_features=explored.mask.shape[0],
        compatible=compatible,
        settings=settings,
        versions=_versions(),
    )
    return _graph(sources, resolved, explored, info)


def attribute_all(
    model: LanguageModel,
    transcoder: Transcoder,
    prompts: Sequence[str | Sequence[int] | Int[Tensor, "_"]],
    *,
    progress: bool = True,
    **settings: Unpack[AttributionSettings],
) -> Iterator[AttributionGraph]:
    """Graphs of several prompts, each computed when it is asked for, with a progress bar in a terminal or notebook.

    ``settings`` are those of ``attribute``, the same for all. Every prompt's tokens are checked before the first is
    attributed. Raises AttributionError that names the prompt.
    """
    if isinstance(prompts, str):
        raise AttributionError(f"prompts is one string, {prompts[:40]!r}; give a list of prompts.")
    for number, prompt in enumerate(prompts):
        with _naming(number, prompts):
            _tokens(model, prompt)
    with _bar(shown=progress and len(prompts) > 1) as bar:
        for number, prompt in enumerate(bar.track(prompts)):
            with _naming(number, prompts):
                graph = attribute(model, transcoder, prompt, **settings)
            yield graph


def _bar(*, shown: bool) -> Progress:
    """A bar on standard error; what is printed meanwhile stands above it in a terminal, and in a file without it."""
    console = Console(stderr=True)
    columns = (TextColumn("attributing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    seen = shown and (console.is_terminal or console.is_jupyter)
    return Progress(*columns, console=console, transient=True, disable=not seen, redirect_stdout=sys.stdout.isatty())


@contextmanager
def _naming(number: int, prompts: Sequence[str | Sequence[int] | Tensor]) -> Generator[None, None, None]:
    """Say of an error which of several prompts it is about."""
    try:
        yield
    except OpenCLTError as error:
        if len(prompts) == 1:
            raise
        prompt = prompts[number]
        what = f", {prompt[:40]!r}" if isinstance(prompt, str) else ""
        raise AttributionError(f"Prompt {number + 1} of {len(prompts)}{what}: {error}") from error


def _tokens(model: LanguageModel, prompt: str | Sequence[int] | Tensor) -> Int[Tensor, "position"]:
    """The prompt's tokens; raises TextError or AttributionError on prompts that cannot be attributed."""
    if isinstance(prompt, str):
        tokens = model.tokenize(prompt)
        if tokens.shape[0] == 2:
            # Between BOS and a lone token there is nothing to explain but that token; whoever wants it gives tokens.
            raise AttributionError(f"The prompt {prompt!r} is one token; attribution needs at least two.")
    else:
        tokens = torch.as_tensor(prompt, dtype=torch.long, device=model.device)
    if tokens.ndim != 1 or tokens.shape[0] < 2:
        raise AttributionError(f"The prompt has {tokens.numel()} tokens; attribution needs one prompt of at least two.")
    if tokens.shape[0] > model.context_length:
        raise AttributionError(
            f"The prompt has {tokens.shape[0]} tokens, {model.name} reads {model.context_length}; shorten it."
        )
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < model.vocab_size:
        raise AttributionError(
            f"The prompt has tokens that {model.name} does not know; ids end at {model.vocab_size - 1}."
        )
    return tokens


def _check_counts(max_feature_nodes: int | None, batch_size: int) -> None:
    for name, value in (("max_feature_nodes", max_feature_nodes), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise AttributionError(f"{name} is {value}; it must be at least 1.")


def _graph(sources: Sources, resolved: Resolved, explored: Explored, info: GraphInfo) -> AttributionGraph:
    """Number the nodes: explored features by layer, then the other sources, then the targets."""
    table, columns = sources.nodes(), sources.columns
    table.total[columns.features] = explored.totals
    # Columns stand by position first; a stable sort by layer gives (layer, position, feature).
    by_layer = torch.argsort(table.layer[columns.features], stable=True)
    features = by_layer[explored.mask[by_layer]]
    others = torch.arange(columns.errors.start, columns.embeddings.stop if info.compatible else sources.n_columns)
    kept = torch.cat([features, others])
    order = torch.cat([kept, sources.n_columns + torch.arange(len(resolved.seeds))])
    number = torch.full((sources.n_columns + len(resolved.seeds),), -1)
    number[order] = torch.arange(order.shape[0])
    target, source = number[explored.edges.target], number[explored.edges.source]
    by_target = torch.argsort(target * order.shape[0] + source)
    edges = Edges(target[by_target], source[by_target], explored.edges.weight[by_target])
    return AttributionGraph(NodeTable.stacked([table[kept], resolved.nodes]), edges, info)


def _versions() -> dict[str, str]:
    """Versions of what computed the graph; a source tree that was never installed has none."""
    found: dict[str, str] = {}
    for name in ("open-clt", "torch", "transformer-lens"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            logger.debug("%s is not installed as a package, so the graph does not name its version", name)
    return found
