"""All that is worth knowing of a transcoder, in one record: what ``open-clt evaluate`` writes and ``compare`` lines up.

    reconstruction    FVU and L0 of each layer, dead and dense shares, histogram of densities
    decoders          spread of each layer's decoder norms
    predictions       cross-entropy with the MLPs, with the transcoder, with mean outputs; KL divergence, agreement
    one at a time     the same with the MLP of one layer replaced, and no other
    graphs            replacement and completeness scores of attribution graphs

Everything is measured on held-out contexts; the same contexts give the same numbers. A report goes through JSON and
back, so that transcoders are compared without measuring them again.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.activations.language_model import LanguageModel
from open_clt.analysis.evaluation import Evaluation, evaluate_transcoder
from open_clt.attribution.attribute import attribute
from open_clt.config import to_dict
from open_clt.errors import AttributionError, CheckpointError, ConfigError
from open_clt.models.transcoder import Transcoder
from open_clt.replacement.comparison import LogitComparison, compare_logits
from open_clt.replacement.model import ReplacementModel

logger = logging.getLogger(__name__)

FORMAT = "open-clt-evaluation"
FORMAT_VERSION = 1
DENSE_ABOVE = 0.1
"""A feature that is active on a larger share of the tokens counts as dense."""
DENSITY_EDGES = tuple(10 ** (exponent / 4) for exponent in range(-24, 1))
"""Edges of the histogram of densities: four bins a decade, from one token in a million to every token."""
NORM_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_JSON, _CSV = "evaluation.json", "evaluation.csv"


class LayerReport(NamedTuple):
    """One layer of a transcoder. Cross-entropies are nats per token."""

    layer: int
    fvu: float
    l0: float
    dead_share: float
    dense_share: float
    decoder_norms: tuple[float, ...]
    """Quantiles (``NORM_QUANTILES``) of the layer's decoder norms, in standardised units."""
    ce_alone: float
    """Cross-entropy with the MLP of this layer replaced, and no other."""
    kl_alone: float
    top1_agreement_alone: float


class GraphReport(NamedTuple):
    """Scores of the attribution graph of one prompt."""

    prompt: str
    replacement: float
    completeness: float


class Report(NamedTuple):
    """A transcoder on held-out text. Cross-entropies and KL divergence are nats per token."""

    name: str
    model: str
    settings: dict[str, Any]
    """The transcoder's configuration."""
    parameters: int
    tokens: int
    fvu: float
    worst_fvu: float
    worst_layer: int
    l0: float
    """Active features per token, mean of the layers."""
    l0_total: float
    dead_share: float
    dense_share: float
    density_histogram: tuple[int, ...]
    """Features in each bin of ``DENSITY_EDGES``; those that never fired are in none."""
    ce_original: float
    ce_replacement: float
    ce_ablated: float
    """With every MLP output set to its mean."""
    ce_recovered: float | None
    kl: float
    top1_agreement: float
    layers: tuple[LayerReport, ...]
    graphs: tuple[GraphReport, ...]

    @property
    def graph_replacement(self) -> float | None:
        """Mean replacement score of the graphs; None without any."""
        return sum(graph.replacement for graph in self.graphs) / len(self.graphs) if self.graphs else None

    @property
    def graph_completeness(self) -> float | None:
        """Mean completeness score of the graphs; None without any."""
        return sum(graph.completeness for graph in self.graphs) / len(self.graphs) if self.graphs else None

    def row(self) -> dict[str, Any]:
        """What a table of several transcoders shows of this one."""
        names = (
            "fvu", "worst_fvu", "l0", "l0_total", "dead_share", "dense_share", "ce_original", "ce_replacement",
            "ce_recovered", "kl", "top1_agreement", "graph_replacement", "graph_completeness", "parameters",
        )  # fmt: skip
        return {"name": self.name, **{name: getattr(self, name) for name in names}}


@torch.no_grad()
def report(
    replacement: ReplacementModel,
    contexts: Int[Tensor, "context position"],
    *,
    name: str,
    prompts: Sequence[str] = (),
    max_feature_nodes: int | None = 1024,
    batch_size: int = 8,
) -> Report:
    """Measure a transcoder on contexts of tokens, each beginning with BOS, and on graphs of some prompts.

    Each graph spends ``max_feature_nodes`` rows. A transcoder that cannot be attributed gets a report without graphs.
    """
    transcoder = replacement.transcoder
    found = evaluate_transcoder(replacement, contexts, batch_size=batch_size)
    alone = replaced_alone(replacement, contexts, batch_size=batch_size)
    metrics, density = found.reconstruction, found.reconstruction.density
    alive = density[density > 0]
    worst = metrics.fvu_per_layer.index(metrics.worst_fvu)
    return Report(
        name=name,
        model=replacement.model.name,
        settings=to_dict(transcoder.config),
        parameters=sum(parameter.numel() for parameter in transcoder.parameters()),
        tokens=metrics.tokens,
        fvu=metrics.fvu,
        worst_fvu=metrics.worst_fvu,
        worst_layer=worst,
        l0=metrics.l0,
        l0_total=sum(metrics.l0_per_layer),
        dead_share=metrics.dead_share,
        dense_share=float((density > DENSE_ABOVE).float().mean()),
        density_histogram=tuple(torch.histogram(alive, torch.tensor(_open_edges())).hist.int().tolist()),
        ce_original=found.logits.cross_entropy_original,
        ce_replacement=found.logits.cross_entropy_replacement,
        ce_ablated=found.cross_entropy_ablated,
        ce_recovered=found.share_recovered,
        kl=found.logits.kl_divergence,
        top1_agreement=found.logits.top1_agreement,
        layers=tuple(_layers(found, alone, transcoder)),
        graphs=tuple(_graphs(replacement.model, transcoder, prompts, max_feature_nodes)),
    )


@torch.no_grad()
def replaced_alone(
    replacement: ReplacementModel, contexts: Int[Tensor, "context position"], *, batch_size: int = 8
) -> list[LogitComparison]:
    """Predictions with one MLP replaced, and no other: how far each is from the original's, layer by layer."""
    model, keep = replacement.model, replacement.keep_first_position
    singles = [
        ReplacementModel(model, replacement.transcoder, layers=[layer], keep_first_position=keep)
        for layer in range(model.n_layers)
    ]
    batches = [rows.to(model.device) for rows in contexts.split(batch_size)]
    weights = torch.tensor([float(tokens.shape[0]) for tokens in batches])
    compared: list[list[LogitComparison]] = [[] for _ in singles]
    for tokens in batches:
        original = model.logits(tokens)
        for single, found in zip(singles, compared, strict=True):
            found.append(compare_logits(original, single.logits(tokens), tokens, first=1))
    shares = weights / weights.sum()
    return [LogitComparison(*(shares @ torch.tensor(found)).tolist()) for found in compared]


def _layers(found: Evaluation, alone: Sequence[LogitComparison], transcoder: Transcoder) -> list[LayerReport]:
    metrics = found.reconstruction
    quantiles = _norm_quantiles(transcoder.decoder_norms())
    return [
        LayerReport(
            layer=layer,
            fvu=metrics.fvu_per_layer[layer],
            l0=metrics.l0_per_layer[layer],
            dead_share=float((density == 0).float().mean()),
            dense_share=float((density > DENSE_ABOVE).float().mean()),
            decoder_norms=quantiles[layer],
            ce_alone=single.cross_entropy_replacement,
            kl_alone=single.kl_divergence,
            top1_agreement_alone=single.top1_agreement,
        )
        for layer, (density, single) in enumerate(zip(metrics.density, alone, strict=True))
    ]


def _norm_quantiles(norms: Float[Tensor, "layer feature"]) -> list[tuple[float, ...]]:
    """Quantiles by sorting: torch.quantile refuses the width of large transcoders."""
    ordered = norms.float().sort(dim=1).values
    places = torch.tensor(NORM_QUANTILES) * (ordered.shape[1] - 1)
    return [tuple(row) for row in ordered[:, places.round().long()].tolist()]


def _open_edges() -> list[float]:
    """The histogram's edges, its first bin open downwards."""
    return [0.0, *DENSITY_EDGES[1:]]


def _graphs(
    model: LanguageModel, transcoder: Transcoder, prompts: Sequence[str], max_feature_nodes: int | None
) -> list[GraphReport]:
    found: list[GraphReport] = []
    for prompt in prompts:
        try:
            graph = attribute(model, cast(Any, transcoder), prompt, max_feature_nodes=max_feature_nodes)
        except AttributionError as error:
            logger.warning("No graph of %r: %s", prompt, error)
            continue
        found.append(GraphReport(prompt, *graph.scores()))
    return found


def save_report(found: Report, directory: str | Path) -> tuple[Path, Path]:
    """Write ``evaluation.json`` (everything) and ``evaluation.csv`` (a row a layer); returns their paths."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **_plain(found)}
    (directory / _JSON).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    rows = [{key: value for key, value in layer._asdict().items() if key != "decoder_norms"} for layer in found.layers]
    medians = [layer.decoder_norms[NORM_QUANTILES.index(0.5)] for layer in found.layers]
    write_rows([{**row, "decoder_norm": norm} for row, norm in zip(rows, medians, strict=True)], directory / _CSV)
    return directory / _JSON, directory / _CSV


def load_report(path: str | Path) -> Report:
    """Read a report that ``save_report`` wrote, from its file or its directory; raises CheckpointError on others."""
    path = Path(path)
    path = path / _JSON if path.is_dir() else path
    try:
        content = cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
        if content.pop("format") != FORMAT or content.pop("format_version") > FORMAT_VERSION:
            raise KeyError("format")
        for layer in content["layers"]:
            layer["decoder_norms"] = tuple(layer["decoder_norms"])
        content["layers"] = tuple(LayerReport(**layer) for layer in content["layers"])
        content["graphs"] = tuple(GraphReport(**graph) for graph in content["graphs"])
        content["density_histogram"] = tuple(content["density_histogram"])
        return Report(**content)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} holds no evaluation report; `open-clt evaluate --output` writes one.") from error


def is_report(path: str | Path) -> bool:
    """Whether a path is a report, or a directory that holds one."""
    path = Path(path)
    return path.is_file() or (path / _JSON).is_file()


def layer_table(found: Report) -> str:
    """A transcoder's layers, a line each, for reading."""
    heads = ("FVU", "L0", "dead", "dense", "norm", "CE alone", "KL alone", "agreement")
    lines = ["layer  " + "".join(f"{head:>11}" for head in heads)]
    for layer in found.layers:
        cells = (
            f"{layer.fvu:.4f}", f"{layer.l0:.1f}", _share(layer.dead_share), _share(layer.dense_share),
            f"{layer.decoder_norms[NORM_QUANTILES.index(0.5)]:.2f}", f"{layer.ce_alone:.3f}",
            f"{layer.kl_alone:.3f}", _share(layer.top1_agreement_alone),
        )  # fmt: skip
        lines.append(f"{layer.layer:<7}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def comparison_table(reports: Sequence[Report]) -> str:
    """Several transcoders in one table, for reading; raises ConfigError if they were not measured on the same model."""
    if not reports:
        raise ConfigError("There is no transcoder to compare; name at least one.")
    models = sorted({found.model for found in reports})
    if len(models) > 1:
        raise ConfigError(f"The transcoders belong to different models ({', '.join(models)}); compare those of one.")
    width = max(12, *(len(found.name) for found in reports)) + 2
    heads = ("FVU", "worst", "L0", "dead", "dense", "CE", "recovered", "KL", "agreement", "graph", "complete", "params")
    lines = [f"{'transcoder':<{width}}" + "".join(f"{head:>11}" for head in heads)]
    for found in reports:
        cells = (
            f"{found.fvu:.4f}", f"{found.worst_fvu:.4f}", f"{found.l0:.1f}", _share(found.dead_share),
            _share(found.dense_share), f"{found.ce_replacement:.3f}", _share(found.ce_recovered), f"{found.kl:.3f}",
            _share(found.top1_agreement), _score(found.graph_replacement), _score(found.graph_completeness),
            f"{found.parameters / 1e6:.2f} M",
        )  # fmt: skip
        lines.append(f"{found.name:<{width}}" + "".join(f"{cell:>11}" for cell in cells))
    original = reports[0].ce_original
    return "\n".join([*lines, f"cross-entropy of {models[0]} itself: {original:.3f}"])


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Rows of equal keys as a CSV file with a head."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _plain(found: Report) -> dict[str, Any]:
    layers, graphs = [layer._asdict() for layer in found.layers], [graph._asdict() for graph in found.graphs]
    return {**found._asdict(), "layers": layers, "graphs": graphs}
