"""Readers of datasets of activations."""

from __future__ import annotations

from tests.data.dataset import parts as dataset
from tests.faults.reading.reader import Reader

DATASETS: dict[str, Reader] = {
    "dataset of activations": Reader(dataset.write, dataset.read, "data.dataset.manifest"),
    "dataset in int8": Reader(dataset.write_int8, dataset.read, "data.dataset.manifest"),
    "dataset on a server": Reader(dataset.write, dataset.read_remote, "data.dataset.manifest", slow=True),
    "statistics of a dataset": Reader(dataset.write, dataset.read_statistics, "data.dataset.statistics"),
    "unfinished dataset": Reader(dataset.write_unfinished, dataset.read_unfinished, "data.dataset.unfinished"),
    "stopped scramble": Reader(dataset.write_stopped_scramble, dataset.use_scrambling, "data.dataset.scrambling.state"),
    "upload of a dataset": Reader(dataset.write_upload, dataset.read_upload, "data.server.uploads"),
}
