"""The result of a training run: the transcoder, its metrics, and the cost of the run."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Int
from torch import Tensor

from open_clt.html_repr import html_repr
from open_clt.short_repr import short_repr
from open_clt.training.data.module import HarvestCost
from open_clt.training.step.module import Curves
from open_clt.transcoders.metrics import TranscoderMetrics
from open_clt.transcoders.transcoder import Transcoder


class TrainingResult(NamedTuple):
    """The trained transcoder, its metrics, and the cost of the run."""

    transcoder: Transcoder
    """The folded transcoder, which reads and writes raw activations; this is the transcoder that is saved.

    When several processes share its features, the first process has all of them, and every other process its slice.
    """
    curves: Curves
    """Loss, FVU, L0, share of dead features and learning rate over the steps."""
    metrics: TranscoderMetrics | None
    """Metrics on the held-out tokens; None if no tokens were held out."""
    dead_share: float
    """Share of features that were silent over the last ``dead_after_tokens`` tokens of training."""
    steps: int
    """Steps taken, including those before the checkpoint that the run resumed from."""
    tokens: int
    """Tokens trained on; a token counts again in every epoch."""
    seconds: float
    """Duration of this run, including the measurement on held-out tokens."""
    finished: bool
    """Whether the run reached its last step; False if it stopped early."""
    harvest: HarvestCost
    """Seconds that harvesting the activations took."""
    first: bool = True
    """Whether this process is the first of those that trained; only the first process saves and reports."""
    interrupted: bool = False
    """Whether Ctrl-C stopped the run."""
    held_out: Int[Tensor, "context position"] | None = None
    """Tokens of the held-out contexts; None if no contexts were held out, or if the activations came from a store."""

    def summary(self) -> dict[str, Any]:
        """The numbers of the run as JSON-ready values: the record that is stored beside the weights."""
        held_out = self.metrics and self.metrics.as_dict()
        scalars = {name: getattr(self, name) for name in ("dead_share", "steps", "tokens", "seconds", "finished")}
        harvest = {**self.harvest._asdict(), "share": self.harvest.share}
        return {**scalars, "harvest_seconds": harvest, "held_out": held_out, "curves": self.curves._asdict()}

    __repr__ = short_repr
    _repr_html_ = html_repr
