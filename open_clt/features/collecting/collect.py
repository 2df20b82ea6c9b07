"""The pass over a text that measures all features of a transcoder: ``collect_features``, and what it collects."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.config import FeatureRecordsConfig
from open_clt.config.arguments import checked_arguments
from open_clt.data.contexts import stream_contexts
from open_clt.features.collecting.activity import ActivitySketch, random_signs
from open_clt.features.collecting.examples import ExampleTable, cut_windows, random_keys, size_keys
from open_clt.features.collecting.histograms import ActivationHistograms
from open_clt.features.collecting.peaks import entries_of, peaks_of
from open_clt.features.collecting.tokens import TokenCounts
from open_clt.features.firing import encode_contexts
from open_clt.language.fits import check_fits
from open_clt.language.language_model import LanguageModel
from open_clt.memory import check_memory
from open_clt.processes import ALONE, Processes
from open_clt.progress import progress_bar
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.sparse.codes import SparseFeatures
from open_clt.transcoders.transcoder import Transcoder

logger = logging.getLogger(__name__)

N_GROUPS = 10
"""Number of ranges of quantiles from which examples are drawn."""
_BATCH_TOKENS = 4096


@runtime_checkable
class _Table(Protocol):
    """What a collection holds of every feature, as tensors that can be merged with those of other contexts."""

    def tensors(self) -> list[Tensor]: ...

    def merge(self, tensors: Sequence[Tensor]) -> None: ...


@final
class _Sums:
    """Counts, sums and extremes of every feature."""

    def __init__(self, rows: int) -> None:
        self.totals: Int[Tensor, "2"] = torch.zeros(2, dtype=torch.long)
        """Number of contexts, and number of encoded tokens."""
        self.counts: Int[Tensor, "row"] = torch.zeros(rows, dtype=torch.long)
        self.sums: Float[Tensor, "row"] = torch.zeros(rows, dtype=torch.double)
        self.extremes: Float[Tensor, "2 row"] = torch.zeros(2, rows)

    def add(self, rows: Int[Tensor, "entry"], values: Float[Tensor, "entry"]) -> None:
        self.counts += torch.bincount(rows, minlength=len(self.counts))
        self.sums.index_add_(0, rows, values.abs().double())
        self.extremes[0].scatter_reduce_(0, rows, values, "amin")
        self.extremes[1].scatter_reduce_(0, rows, values, "amax")

    def merge(self, tensors: Sequence[Tensor]) -> None:
        totals, counts, sums, extremes = tensors
        self.totals += totals
        self.counts += counts
        self.sums += sums
        self.extremes[0] = torch.minimum(self.extremes[0], extremes[0])
        self.extremes[1] = torch.maximum(self.extremes[1], extremes[1])

    def tensors(self) -> list[Tensor]:
        return [self.totals, self.counts, self.sums, self.extremes]


@final
class FeatureCollection:
    """What was measured of every feature on some contexts.

    Rows of every tensor are features, by layer and index (``row``, ``feature``). The axis ``layer`` has the layers of
    the transcoder, whose numbers in the language model are ``model_layers``.
    """

    def __init__(self, transcoder: Transcoder, context_length: int, config: FeatureRecordsConfig) -> None:
        self.n_layers, self.n_features = transcoder.config.n_layers, transcoder.config.n_features
        self.model_layers = transcoder.config.model_layers
        self.first_position = transcoder.first_position
        self.context_length = context_length
        self.config = config
        rows = self.n_layers * self.n_features
        window, slots = min(config.window, context_length), N_GROUPS * config.examples_per_group
        _check_memory(rows, window, config.top_examples + slots)
        self._sums = _Sums(rows)
        self.top = ExampleTable(rows, config.top_examples, window)
        """Contexts with the largest activations."""
        self.sample = ExampleTable(rows, slots, window)
        """A random sample of the contexts in which each feature is active."""
        self.positive, self.negative = ActivationHistograms(rows), ActivationHistograms(rows)
        """Histograms of positive activations, and of the sizes of negative ones."""
        self.tokens = TokenCounts(rows)
        self.activity = ActivitySketch(rows)

    def add(
        self, contexts: Int[Tensor, "context position"], layers: Sequence[SparseFeatures], first_context: int
    ) -> None:
        """Add a batch of contexts, of which the first has the number ``first_context`` in the text."""
        encoded = contexts[:, self.first_position :]
        flat = encoded.flatten()
        self._sums.totals += torch.tensor([len(contexts), len(flat)])
        signs = random_signs(len(flat), first_context)
        for layer, active in enumerate(layers):
            first_row = layer * self.n_features
            entries = entries_of(active, encoded.shape[1], self.first_position)
            rows = entries.features + first_row
            self._sums.add(rows, entries.values)
            self._count_values(rows, entries.values)
            self.tokens.add(rows, flat[entries.tokens])
            self.activity.add(first_row, entries.tokens, entries.offsets, signs)
            peaks = peaks_of(entries, len(contexts))
            rows, numbers = peaks.features + first_row, peaks.contexts + first_context
            windows = partial(cut_windows, entries, peaks, contexts, self.top.window)
            self.top.offer(rows, size_keys(peaks, numbers), windows)
            self.sample.offer(rows, random_keys(rows, numbers), windows)

    def _count_values(self, rows: Int[Tensor, "entry"], values: Float[Tensor, "entry"]) -> None:
        negative = values < 0
        if not bool(negative.any()):
            self.positive.add(rows, values)
            return
        self.negative.add(rows[negative], -values[negative])
        self.positive.add(rows[~negative], values[~negative])

    def merge(self, tensors: Sequence[Tensor]) -> None:
        """Add what was measured on other contexts of the same text: the ``tensors`` of another collection."""
        remaining = iter(tensors)
        for table in self._tables():
            table.merge(list(islice(remaining, len(table.tensors()))))

    def tensors(self) -> list[Tensor]:
        """The tensors that ``merge`` takes."""
        return [tensor for table in self._tables() for tensor in table.tensors()]

    def row(self, feature: Feature) -> int:
        """The row of a feature in every tensor."""
        return self.model_layers.index(feature.layer) * self.n_features + feature.index

    def feature(self, row: int) -> Feature:
        """The feature that a row of every tensor belongs to."""
        place, index = divmod(row, self.n_features)
        return Feature(self.model_layers[place], index)

    def _tables(self) -> tuple[_Table, ...]:
        return self._sums, self.top, self.sample, self.positive, self.negative, self.tokens, self.activity

    @property
    def counts(self) -> Int[Tensor, "row"]:
        """Number of tokens on which each feature is active."""
        return self._sums.counts

    @property
    def extremes(self) -> Float[Tensor, "2 row"]:
        """Lowest and highest activation of each feature, zeros included."""
        return self._sums.extremes

    @property
    def n_contexts(self) -> int:
        """Number of contexts."""
        return int(self._sums.totals[0])

    @property
    def n_tokens(self) -> int:
        """Number of tokens that were encoded."""
        return int(self._sums.totals[1])

    @property
    def density(self) -> Float[Tensor, "layer feature"]:
        """Share of the tokens on which each feature is active."""
        return (self.counts / max(1, self.n_tokens)).float().view(self.n_layers, self.n_features)

    @property
    def mean(self) -> Float[Tensor, "layer feature"]:
        """Mean size of each feature's activations over all tokens, zeros included."""
        return (self._sums.sums / max(1, self.n_tokens)).float().view(self.n_layers, self.n_features)

    __repr__ = short_repr


@checked_arguments
@torch.no_grad()
def collect_features(
    model: LanguageModel,
    transcoder: Transcoder,
    texts: Iterable[str],
    config: FeatureRecordsConfig | None = None,
    *,
    processes: Processes = ALONE,
) -> FeatureCollection:
    """Measure all features of a transcoder in one pass over texts, which are read once and are not kept.

    Memory grows with the number of features, and not with the text. Several processes share the texts; the first one
    gets the whole collection, and each other one only its part. Raises TextError if the texts do not fill a context,
    and ResourceError if the memory is too small.
    """
    config = config or FeatureRecordsConfig()
    check_fits(transcoder, model)
    length = min(config.context_length, model.context_length)
    size = max(1, _BATCH_TOKENS // length)
    most = None if config.max_tokens is None else max(1, config.max_tokens // length)
    batches = stream_contexts(texts, model, length, size, from_start=config.from_start, max_contexts=most)
    collection: FeatureCollection | None = None
    with progress_bar("features", shown=processes.is_first) as progress:
        task = progress.add_task("features", total=None if most is None else -(-most // size))
        for number, contexts in enumerate(batches):
            if collection is None:
                collection = FeatureCollection(transcoder, contexts.shape[1], config)
            if processes.work_on(number):
                collection.add(contexts, encode_contexts(model, transcoder, contexts), number * size)
            progress.update(task, completed=number + 1)
    assert collection is not None, "texts that do not fill a context are refused"
    for tensors in processes.gather(collection.tensors()):
        collection.merge(tensors)
    return collection


def _check_memory(rows: int, window: int, slots: int) -> None:
    """Raise ResourceError if the tables of ``rows`` features, with ``slots`` examples each, do not fit into memory."""
    of_example = 8 + 4 + 2 + window * (4 + 2)
    needed = rows * (slots * of_example + 4 * (256 + 2 * 256 + 256) + 32)
    check_memory(f"Measuring {rows:,} features", needed, "ask for fewer examples per feature, or for a shorter window")
