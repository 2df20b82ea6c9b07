"""The page of the server for people: its datasets and its addresses, without a script and without another server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from open_clt.data.server.datasets import Dataset

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color-scheme:light dark}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3em .6em;border-bottom:1px solid #8884;"
    "vertical-align:top}code{overflow-wrap:anywhere}"
)


def page(datasets: Iterable[Dataset] | None, schema: Mapping[str, Any]) -> str:
    """The page; ``datasets`` is None where reading needs a token, and ``schema`` the server's OpenAPI description."""
    addresses = [
        (f"<code>{escape(method.upper())} {escape(path)}</code>", escape(operation.get("description", "")))
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    ]
    if datasets is None:
        shown = "<p>This server asks for a token before it shows its datasets.</p>"
    else:
        rows = [(_link(one), f"{one.manifest.tokens:,}", escape(one.manifest.harvested.model)) for one in datasets]
        shown = _table(("Dataset", "Tokens", "Language model"), rows) if rows else "<p>There are no datasets yet.</p>"
    return (
        '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>OpenCLT datasets</title><style>{_STYLE}</style><h1>Datasets of activations</h1>{shown}"
        f"<h2>Addresses</h2>{_table(('Request', 'Answer'), addresses)}<p>Programs read the same as "
        '<a href="openapi.json">openapi.json</a>.</p></html>'
    )


def _link(dataset: Dataset) -> str:
    name = escape(dataset.name)
    return f'<a href="datasets/{name}/manifest.json">{name}</a>'


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells that are HTML already."""
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
