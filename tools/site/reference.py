"""Reference pages of the site, as Markdown that is made from the code whenever the site is built.

    commands_page     the help of every command of ``open-clt``
    settings_page     every key of a training config, from the dataclasses of ``open_clt.config``
    api_page          every public name, from its docstring

None of this text is stored: a page of ``docs/`` has a comment such as ``<!-- commands -->`` where the text goes.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, NamedTuple

import open_clt
from open_clt import config
from open_clt.cli import main
from open_clt.training.flags.settings import field_docs

_COLUMNS = "96"
"""Width of the help texts."""


class Section(NamedTuple):
    """A group of keys of a training config, and the dataclasses whose fields they are."""

    key: str
    kinds: Sequence[type[Any]]
    skipped: Sequence[str] = ()
    """Fields that are not keys, because the language model or Lightning's Trainer decides them."""


SECTIONS = (
    Section("transcoder", (config.CrossLayerConfig, config.MoltConfig), ("language_model",)),
    Section("transcoder.nonlinearity", typing.get_args(config.NonlinearityConfig)),
    Section("training", (config.LearningConfig,)),
    Section("training.loss", (config.LossConfig,)),
    Section("training.loss.sparsity", typing.get_args(config.SparsityConfig)),
    Section("data", (config.DataConfig,), ("epochs", "max_steps", "seed")),
    Section("data", (config.DatasetConfig,)),
    Section("data.texts", (config.TextsConfig,)),
    Section("checkpoints", (config.CheckpointsConfig,)),
    Section("report", (config.ReportConfig,)),
)

API_GROUPS = {
    "Everything at once": "OpenCrossLayerTranscoder run_visualization_suite write_report",
    "Transcoders": "load_transcoder save_transcoder make_transcoder push_transcoder CrossLayerTranscoder SparseEncoder "
    "SparseCLTEncoder CrossLayerConfig MoltConfig TranscoderConfig",
    "Language models and replacement": "load_language_model ReplacementModel Intervention intervene",
    "Training": "train_transcoder TrainingConfig",
    "Attribution graphs": "attribute attribute_all AttributionGraph faithfulness explain_attention suggest_supernodes "
    "write_circuit_tracer",
    "Pictures": "visualize_attribution_graph interactive_attribution_graph save_interactive",
    "The explorer's files": "load_session save_session",
    "Errors and version": "OpenCLTError __version__",
}
"""The public names, in the order of the page; names of ``open_clt.__all__`` that are not here come last."""


def commands_page() -> str:
    """The help of each command of ``open-clt``, under a heading with its name."""
    return "\n\n".join(f"## `open-clt {name}`\n\n```text\n{_help(*name.split())}\n```" for name in command_names())


def command_names() -> list[str]:
    """The commands of ``open-clt`` in the order of its help; ``embedded`` has a command of its own."""
    _, _, listed = _help().partition("\ncommands:")
    names = re.findall(r"^ {4}([a-z]+)\b", listed, flags=re.MULTILINE)
    return ["embedded evaluate" if name == "embedded" else name for name in names]


def _help(*command: str) -> str:
    """What ``open-clt COMMAND --help`` prints."""
    printed, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = _COLUMNS
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([*command, "--help"])
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns
    return printed.getvalue().rstrip()


def settings_page() -> str:
    """A table of keys for each config; several kinds of one setting have a table each."""
    return "\n\n".join("\n\n".join(_tables(section)) for section in SECTIONS)


def _tables(section: Section) -> Iterator[str]:
    several = len(section.kinds) > 1
    yield f"## `{section.key}` ({section.kinds[0].__name__})" if not several else f"## `{section.key}`"
    for kind in section.kinds:
        if several:
            yield f"### `{section.key}.kind: {kind.kind}` ({kind.__name__})"
        yield _plain(inspect.getdoc(kind) or "")
        rows = [
            _row(section.key, kind, entry) for entry in fields(kind) if entry.name not in ("kind", *section.skipped)
        ]
        if rows:
            yield "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def _row(key: str, kind: type[Any], entry: Field[Any]) -> str:
    meaning = " ".join(field_docs(kind).get(entry.name, "").split())
    return f"| `{key}.{entry.name}` | {_default(entry)} | {_plain(meaning)} |".replace(" |W_dec| ", r" \|W_dec\| ")


def _default(entry: Field[Any]) -> str:
    if entry.default_factory is not MISSING:
        return f"the defaults of `{type(entry.default_factory()).__name__}`"
    if entry.default is MISSING:
        return "required"
    return f"`{'null' if entry.default is None else entry.default}`"


def _plain(docstring: str) -> str:
    """A docstring as Markdown: its code has single backticks, and a bar inside does not end the cell of a table."""
    return docstring.replace("``", "`").replace("|", r"\|")


def api_page() -> str:
    """Every public name, in groups, as directives of autodoc."""
    groups = {title: names.split() for title, names in API_GROUPS.items()}
    rest = [name for name in open_clt.__all__ if name not in {name for names in groups.values() for name in names}]
    if rest:
        groups["More"] = rest
    return "\n\n".join(
        f"## {title}\n\n" + "\n\n".join(_directive(name) for name in names) for title, names in groups.items()
    )


def _directive(name: str) -> str:
    """The directive of autodoc that documents a public name."""
    value = getattr(open_clt, name)
    if isinstance(value, type):
        lines = [f".. autoclass:: open_clt.{name}", "   :members:"]
    elif inspect.isroutine(value):
        lines = [f".. autofunction:: open_clt.{name}"]
    else:
        kind = " | ".join(part.__name__ for part in typing.get_args(value)) or repr(value)
        lines = [f".. py:data:: open_clt.{name}", "", f"   ``{kind}``"]
    return "\n".join(["```{eval-rst}", *lines, "```"])
