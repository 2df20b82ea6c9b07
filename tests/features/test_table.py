"""The table of features: what is written is read back, also from tables of older versions."""

from __future__ import annotations

import json

from open_clt.features.table import read_columns, row_of, to_columns
from tests.features.rich_record import rich_record


def test_rows_are_read_as_they_were_written() -> None:
    rows = [row_of(rich_record(layer, 3)) for layer in range(2)]
    assert rows[0].also
    assert read_columns(json.loads(json.dumps(to_columns(rows)))) == rows


def test_a_table_without_the_text_for_searches_is_read() -> None:
    rows = [row_of(rich_record(layer, 3)) for layer in range(2)]
    columns = json.loads(json.dumps(to_columns(rows)))
    del columns["also"]
    assert read_columns(columns) == [row._replace(also="") for row in rows]
