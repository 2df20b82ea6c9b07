"""Held-out text: a file or a data set that the user names, or, for the embedded model, sentences that are generated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from open_clt.errors import ConfigError, short_value

if TYPE_CHECKING:
    from torch import Tensor

    from open_clt.language.language_model import LanguageModel

CONTEXT_TOKENS, SENTENCE_TOKENS = 128, 40
"""Default number of tokens in a context of a named text, and of generated sentences."""
SENTENCES = 20_000
"""Number of generated documents from which contexts are chosen."""


@final
@dataclass(frozen=True, kw_only=True)
class HeldOutText:
    """The choice of a text on which transcoders are measured."""

    source: str | None = None
    """File or data set of the text; None generates sentences, for the embedded model only."""
    column: str | None = None
    """Column of the file or data set that holds the texts; None is the default of ``TextsConfig``."""
    split: str | None = None
    """Split of the data set; None is the default of ``TextsConfig``."""
    max_tokens: int = 16_384
    """Largest number of tokens to measure on."""
    context_length: int | None = None
    """Number of tokens in a context; None is 128, or 40 for generated sentences."""
    seed: int = 0
    """Seed that selects the contexts of a longer text."""

    @property
    def description(self) -> str:
        """Where the contexts come from, in words."""
        source = "the embedded model's sentences" if self.source is None else self.source
        return f"{source}, seed {self.seed}"

    @property
    def length(self) -> int:
        """The number of tokens in a context that is asked for."""
        # The embedded model was trained on short contexts that begin where a document begins.
        return self.context_length or (SENTENCE_TOKENS if self.source is None else CONTEXT_TOKENS)

    def contexts(self, model: LanguageModel) -> Tensor:
        """Contexts of tokens (context, position), each of which begins with BOS; the same choice gives the same ones.

        Raises ConfigError if a model other than the embedded one has no text, and TextError if the text is too short.
        """
        import torch

        from open_clt.data.contexts import pack_contexts

        length = min(self.length, model.context_length)
        count = max(1, self.max_tokens // length)
        texts = self.texts(model, sentences=SENTENCES)
        contexts = pack_contexts(texts, model, length, from_start=self.source is None, max_contexts=4 * count)
        order = torch.randperm(contexts.shape[0], generator=torch.Generator().manual_seed(self.seed))
        return contexts[order[:count].sort().values]

    def texts(self, model: LanguageModel, *, sentences: int) -> Iterable[str]:
        """The texts; for the embedded model without a text, at most ``sentences`` generated documents."""
        from open_clt.config import TextsConfig
        from open_clt.data.texts import ignored_settings, open_texts
        from open_clt.embedded.corpus import generate_texts

        place = {name: getattr(self, name) for name in ("column", "split") if getattr(self, name) is not None}
        if self.source is None:
            for name, value in place.items():
                raise ConfigError(f"--{name} is {value!r}, but no text is given; name it with --text.")
            if model.name != "embedded":
                raise ConfigError(
                    f"The model {model.name!r} needs a text to measure on; give a file or a data set with --text."
                )
            return generate_texts(sentences, seed=self.seed + 1)
        names, reason = ignored_settings(self.source)
        for name in place.keys() & names:
            raise ConfigError(f"--{name} is {short_value(place[name])}, but {reason}; remove this option.")
        return open_texts(TextsConfig(source=self.source, **place))
