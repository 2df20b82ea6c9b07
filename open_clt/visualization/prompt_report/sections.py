"""The sections of a report as HTML. Every text is escaped here; the graph and the features are drawn by scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from open_clt.config.json import to_dict
from open_clt.evaluation.faithfulness_report import Faithfulness
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.info import info_json
from open_clt.transcoders.transcoder import Transcoder
from open_clt.visualization.labels import token_label
from open_clt.visualization.page import escaped
from open_clt.visualization.prompt_report.neurons import NeuronComparison
from open_clt.visualization.prompt_report.predictions import Likely, Prediction

_TOKEN_CHARS = 24


def head(graph: AttributionGraph, last: Prediction) -> str:
    """The prompt, and what both models predict after it."""
    chips = "".join(
        f'<p class="r-next"><span class="r-who">{who}</span> {"".join(map(_chip, likely[:3]))}</p>'
        for who, likely in (("model", last.original), ("replacement", last.replacement))
    )
    return head_of_graph(graph, chips)


def head_of_graph(graph: AttributionGraph, chips: str = "") -> str:
    """The prompt of a graph, and beside it what is known of the predictions, as HTML."""
    info = graph.info
    return (
        f'<header class="r-head"><div class="r-prompt"><h1><bdi>{escaped(info.prompt)}</bdi></h1>'
        f'<p class="r-small">OpenCLT report · {escaped(info.model)} · {len(info.tokens)} tokens</p></div>'
        f'<div class="r-nexts">{chips}</div></header>'
    )


def graph_section() -> str:
    """The graph and the panel beside it, which scripts fill."""
    key = (
        '<span class="r-key"><i class="r-dot"></i>feature</span>'
        '<span class="r-key"><i class="r-dot r-diamond"></i>error</span>'
        '<span class="r-key"><i class="r-dot r-square"></i>bias, position, MLP output</span>'
        '<span class="r-key"><i class="r-line"></i>excites</span>'
        '<span class="r-key"><i class="r-line r-dashed"></i>inhibits</span>'
    )
    toggles = "".join(
        f'<label><input type="checkbox" checked data-shape="{shape}"> {name}</label>'
        for shape, name in (("error", "errors"), ("other", "biases, positions, MLP outputs"))
    )
    return (
        f'<div class="r-tools"><span>{key}</span><span class="r-toggles">{toggles}</span></div>'
        '<noscript><p class="r-note">The graph and the features need JavaScript, the tables do not.</p></noscript>'
        '<main class="r-main"><section id="graph" aria-label="Graph"></section>'
        '<aside id="panel" aria-label="Selection"></aside></main>'
    )


def features_section(note: str) -> str:
    """The list of features, which a script fills."""
    return (
        f'<section class="r-section"><h2>Features</h2><p class="r-note">{escaped(note)}</p>'
        '<div id="features"></div></section>'
    )


def predictions_section(rows: Sequence[Prediction]) -> str:
    """A table of what both models predict after each token."""
    lines = (
        f"<tr><td>{position}</td><td><bdi>{_token(row.token)}</bdi></td>"
        f"<td>{''.join(map(_chip, row.original))}</td><td>{''.join(map(_chip, row.replacement))}</td>"
        f"<td>{row.kl_divergence:.3f}</td></tr>"
        for position, row in enumerate(rows)
    )
    return (
        '<section class="r-section"><h2>Tokens and predictions</h2>'
        '<p class="r-note">The likeliest next tokens after each token, of the model and of the replacement model, '
        "whose MLPs are the transcoder. KL is KL(model || replacement) in nats.</p>"
        '<div class="r-wide"><table><thead><tr><th>position</th><th>token</th><th>model</th><th>replacement</th>'
        f"<th>KL</th></tr></thead><tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def faithfulness_section(result: Faithfulness | None) -> str:
    """Numbers of the comparison of the graph with interventions, or how to get them."""
    if result is None:
        content = '<p class="r-note">The check against interventions was skipped.</p>'
    else:
        agreement = result.agreement
        rows = [
            ("direct effects", f"Spearman {result.direct.spearman:.3f}, slope {result.direct.slope:.3f}"),
            ("total effects", f"Spearman {result.total.spearman:.3f}, slope {result.total.slope:.3f}"),
            ("influence", f"Pearson of log influence and log KL {result.influence.pearson:.3f}"),
            (
                "replacement model",
                f"KL {agreement.kl_divergence:.3f} nats, {'same' if agreement.same_top else 'different'} top token; "
                f"same top token at {agreement.top1_agreement:.0%} of the positions",
            ),
            *(
                (
                    row.words,
                    f"cosine {row.cosine:.3f}, normalised MSE {row.normalised_mse:.3f}",
                )
                for row in result.perturbations
            ),
        ]
        content = (
            f'<p class="r-note">{len(result.features)} features were ablated one at a time; the effects are compared '
            "with what the graph predicts. Direct effects keep MLP outputs frozen; total effects freeze nothing. "
            "Perturbations of the residual stream are compared with those of the local replacement model.</p>"
            f"{_facts(rows)}"
        )
    return f'<section class="r-section"><h2>Faithfulness</h2>{content}</section>'


def neurons_section(comparison: NeuronComparison) -> str:
    """A table of how many features, and how many neurons, explain the same share of the answer."""
    lines = [
        ("active", *(f"{side.active:,}" for side in comparison)),
        ("with rows in the graph", *(f"{side.rows:,}" for side in comparison)),
        ("replacement score of the whole graph", *(f"{side.scores.replacement:.3f}" for side in comparison)),
        ("completeness of the whole graph", *(f"{side.scores.completeness:.3f}" for side in comparison)),
        *(
            (f"needed for a replacement score of {share}", *(_size(side.sizes[share]) for side in comparison))
            for share in comparison.features.sizes
        ),
    ]
    rows = "".join(
        f"<tr><td>{name}</td><td>{features}</td><td>{neurons}</td></tr>" for name, features, neurons in lines
    )
    return (
        '<section class="r-section"><h2>Features and neurons</h2>'
        "<p class=\"r-note\">The same outputs, explained by the transcoder's features and by the model's own neurons, "
        "which need no training. The replacement score of a pruned graph is the share of the outputs' influence that "
        "its features carry from the tokens.</p>"
        '<div class="r-wide"><table><thead><tr><th></th><th>features</th><th>neurons</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _size(size: float) -> str:
    return "not reached" if math.isnan(size) else f"{size:,.0f}"


def made_section(
    graph: AttributionGraph, pruned: AttributionGraph, transcoder: Transcoder, facts: Mapping[str, str]
) -> str:
    """How the report was made: models, settings, versions, and whether the rows of the graph add up."""
    info, completeness = graph.info, graph.check()
    whole, part = graph.scores(), pruned.scores()
    missing = graph.missing() or "all rows add up to their totals, except for rounding"
    settings = json.dumps(info_json(pruned.info).facts["settings"], indent=1)
    config = json.dumps(to_dict(transcoder.config), indent=1)
    shape = transcoder.config
    rows = [
        ("prompt", info.prompt),
        ("language model", info.model),
        (
            "transcoder",
            f"{type(transcoder).__name__} with {shape.n_features} features at each of the layers "
            f"{shape.layer_words}, from "
            f"{shape.input_hook} to {shape.target_hook}",
        ),
        *facts.items(),
        ("check of the rows", f"{missing}; largest missing share {completeness.relative_to_row:.1e}"),
        (
            "whole graph",
            f"{graph.n_nodes} nodes, {graph.n_edges} edges; replacement score {whole.replacement:.3f}, "
            f"completeness {whole.completeness:.3f}",
        ),
        (
            "pruned graph",
            f"{pruned.n_nodes} nodes, {pruned.n_edges} edges; replacement score {part.replacement:.3f}, "
            f"completeness {part.completeness:.3f}",
        ),
        ("versions", ", ".join(f"{name} {version}" for name, version in info.versions.items())),
    ]
    details = "".join(
        f"<details><summary>{name}</summary><pre>{escaped(text)}</pre></details>"
        for name, text in (("Settings of the graph", settings), ("Config of the transcoder", config))
    )
    return f'<section class="r-section"><h2>How it was made</h2>{_facts(rows)}{details}</section>'


def _facts(rows: Iterable[tuple[str, Any]]) -> str:
    pairs = (f"<dt>{escaped(name)}</dt><dd><bdi>{escaped(value)}</bdi></dd>" for name, value in rows)
    return f'<dl class="r-facts">{"".join(pairs)}</dl>'


def _chip(likely: Likely) -> str:
    share = "&lt;1" if likely.probability < 0.005 else f"{100 * likely.probability:.0f}"
    return f'<span class="r-chip"><bdi>{_token(likely.token)}</bdi> <small>{share}%</small></span> '


def _token(text: str) -> str:
    return escaped(token_label(text, _TOKEN_CHARS))
