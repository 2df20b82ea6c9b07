"""The values that dashboards show: records of features as plain JSON, small enough for all features of a transcoder.

The tokens of examples are numbers of a vocabulary that the features of one file share. ``assets/dashboards.js`` reads
these values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from open_clt.features.feature_data import feature_data, known
from open_clt.features.records import FeatureRecord
from open_clt.features.table import FeatureRow


def part_values(records: Sequence[FeatureRecord]) -> dict[str, Any]:
    """The values of the features of one file, by index of the feature, and the tokens of their examples."""
    vocabulary: dict[str, int] = {}
    features = {str(record.feature.index): feature_data(record, vocabulary) for record in records}
    return {"tokens": list(vocabulary), "features": features}


def table_values(rows: Sequence[FeatureRow]) -> dict[str, list[Any]]:
    """The columns of the table of features."""
    return {
        "layer": [row.feature.layer for row in rows],
        "index": [row.feature.index for row in rows],
        "label": [row.label for row in rows],
        "automatic": [row.automatic for row in rows],
        "density": [known(row.density) for row in rows],
        "max": [known(row.max_activation) for row in rows],
        "firesOn": [row.fires_on for row in rows],
        "raises": [row.top_tokens for row in rows],
    }
