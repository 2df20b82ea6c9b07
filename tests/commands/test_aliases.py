"""Names of options: those that people know from circuit-tracer, and former ones, mean the same as ours."""

from __future__ import annotations

import pytest

from open_clt.cli import _parser

BOTH = [
    (["-m", "embedded"], ["--model", "embedded"]),
    (["-t", "neurons"], ["--transcoder", "neurons"]),
    (["--transcoder_set", "neurons"], ["--transcoder", "neurons"]),
    (["--max_feature_nodes", "9"], ["--max-feature-nodes", "9"]),
    (["--node_threshold", "0.5"], ["--node-threshold", "0.5"]),
    (["--threshold", "0.5"], ["--node-threshold", "0.5"]),
    (["--edge_threshold", "0.5"], ["--edge-threshold", "0.5"]),
]
OF_ATTRIBUTE = [
    (["--max_n_logits", "3"], ["--max-logits", "3"]),
    (["--desired_logit_prob", "0.5"], ["--logit-probability", "0.5"]),
]


@pytest.mark.parametrize(
    ("command", "alias", "name"),
    [("report", *pair) for pair in BOTH] + [("attribute", *pair) for pair in BOTH + OF_ATTRIBUTE],
)
def test_another_name_of_an_option_means_the_same(command: str, alias: list[str], name: list[str]) -> None:
    parse, needed = _parser().parse_args, [command, "--prompt", "A", "--output", "report.html"]
    meant = parse([*needed, *name])
    assert parse([command, "-p", "A", "-o", "report.html", *alias]) == meant
    assert meant != parse(needed) or name == ["--model", "embedded"]
