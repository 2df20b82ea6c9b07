"""The reconstruction of a transcoder, measured on a dataset of activations: no language model runs.

The numbers are those of a report (``report.py``) that need activations only: FVU, L0, shares of dead and dense
features, and decoder norms. The FVU is the normalised mean squared error, so the explained variance is 1 - FVU. First
positions of contexts are left out, as in training, unless the transcoder uses them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch

from open_clt.data.dataset.fits import check_dataset_fits
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.harvest import ActivationBatch, without_outliers
from open_clt.errors import TextError
from open_clt.evaluation.report import (
    RECONSTRUCTION_COLUMNS,
    RECONSTRUCTION_LAYER_COLUMNS,
    norm_quantiles,
    text_table,
)
from open_clt.processes import ALONE, Processes
from open_clt.progress import report_progress
from open_clt.short_repr import short_repr
from open_clt.transcoders.metrics import MetricsAccumulator, TranscoderMetrics
from open_clt.transcoders.transcoder import Transcoder


class Reconstruction(NamedTuple):
    """The numbers of a transcoder on a dataset of activations."""

    name: str
    """Name of the transcoder in tables."""
    model: str
    """Name of the language model that the activations come from."""
    text: str
    """Description of the text that the activations come from."""
    parameters: int
    """Number of parameters of the transcoder."""
    metrics: TranscoderMetrics
    """Reconstruction and sparsity of the transcoder."""
    decoder_norms: tuple[tuple[float, ...], ...]
    """Quantiles of the decoder norms of each layer, as in a report."""

    def layers(self) -> list[dict[str, Any]]:
        """The numbers of each layer, under their names in files and tables."""
        rows = zip(self.metrics.model_layers, self.metrics.layers, self.decoder_norms, strict=True)
        return [{"layer": layer, **numbers._asdict(), "decoder_norms": norms} for layer, numbers, norms in rows]

    def as_dict(self) -> dict[str, Any]:
        """All numbers, ready for JSON."""
        return {
            "name": self.name,
            "model": self.model,
            "text": self.text,
            "parameters": self.parameters,
            **self.metrics.totals(),
            "density_histogram": self.metrics.density_histogram,
            "layers": self.layers(),
        }

    def tables(self) -> str:
        """A table of the layers and a table of the whole transcoder, as text."""
        rows, total = self.layers(), {**self.metrics.totals(), "parameters": self.parameters}
        width = max(12, len(self.name)) + 2
        return "\n".join([
            *text_table("layer  ", [str(row["layer"]) for row in rows], rows, RECONSTRUCTION_LAYER_COLUMNS),
            *text_table(f"{'transcoder':<{width}}", [self.name], [total], RECONSTRUCTION_COLUMNS),
            f"on {self.metrics.tokens:,} stored tokens of {self.text}",
        ])  # fmt: skip

    __repr__ = short_repr


@torch.no_grad()
def measure_reconstruction(
    transcoder: Transcoder,
    dataset: ActivationDataset,
    *,
    name: str,
    max_tokens: int | None = None,
    processes: Processes = ALONE,
) -> Reconstruction:
    """Measure a transcoder on the first ``max_tokens`` tokens of a dataset, or on all of them.

    Several processes share the tokens, and each returns the numbers of all of them. Raises ConfigError if the dataset
    does not fit the transcoder, and TextError if it has no token that the transcoder uses.
    """
    harvested, layers = dataset.manifest.harvested, transcoder.config.layers
    check_dataset_fits(harvested, transcoder.config, dataset.source)
    metrics = MetricsAccumulator(transcoder)
    total, done = len(dataset) if max_tokens is None else min(max_tokens, len(dataset)), 0
    for number, batch in enumerate(first_tokens(dataset.batches(layers), total)):
        report_progress("measuring", done, total)
        done += batch.size
        if processes.work_on(number):
            usable = without_outliers(batch, first_position=transcoder.first_position, layers=layers)
            metrics.update(usable.inputs, usable.targets)
    metrics.add_up(processes)
    if metrics.tokens == 0:
        raise TextError(f"{dataset.source} has no tokens after the first positions of contexts; give a larger one.")
    return Reconstruction(
        name=name,
        model=harvested.model,
        text=harvested.text.source,
        parameters=transcoder.n_parameters,
        metrics=metrics.result(),
        decoder_norms=norm_quantiles(transcoder.decoder_norms()),
    )


def first_tokens(batches: Iterable[ActivationBatch], tokens: int) -> Iterator[ActivationBatch]:
    """Yield batches until they have ``tokens`` tokens; the last one is cut."""
    for batch in batches:
        yield batch.take(slice(tokens))
        tokens -= batch.size
        if tokens <= 0:
            return
