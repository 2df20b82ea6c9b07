"""The facade: a language model and its transcoder in one object, from text to picture in a few calls.

    clt = OpenCrossLayerTranscoder("embedded", num_features=512)
    clt.train_transcoder(texts)
    clt.visualize_feature_activations("The capital of France is", save_path="features.png")
    clt.create_attribution_graph("The capital of France is", save_path="graph.png")

Every method is a few lines over the rest of the package; whoever needs more than they offer finds it there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, final

from torch import Tensor

from open_clt.attribution.attribute import AttributionSettings, attribute, attribute_all
from open_clt.config import CrossLayerConfig, NonlinearityConfig, TopKConfig, TrainingConfig
from open_clt.errors import CheckpointError, OpenCLTError
from open_clt.features.firing import FeatureActivations, TopFeature, feature_activations, top_features
from open_clt.graphs.graph import AttributionGraph
from open_clt.language.fits import check_fits
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.transcoder import Transcoder

if TYPE_CHECKING:
    from open_clt.evaluation.faithfulness_report import Faithfulness
    from open_clt.replacement.model import ReplacementModel
    from open_clt.training.result import TrainingResult
    from open_clt.training.run import OwnParts
    from open_clt.visualization.style import Figure

logger = logging.getLogger(__name__)

_PRETRAINED = {"embedded": Path(__file__).parent / "embedded" / "transcoder"}
_SUFFIXES_OF_FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
"""Endings of the files in which other programs keep weights."""


@final
class OpenCrossLayerTranscoder:
    """A language model with a cross-layer transcoder of its MLPs.

    ``model_name`` is anything that ``load_language_model`` takes, or a loaded ``LanguageModel``; ``num_features`` is
    per layer. The transcoder is untrained until ``train_transcoder`` or ``load_model``.
    """

    def __init__(
        self,
        model_name: str | Path | LanguageModel = "gpt2",
        num_features: int = 512,
        device: str = "cpu",
        *,
        nonlinearity: NonlinearityConfig | None = None,
        reach: int | None = None,
        skip: bool = False,
        use_first_position: bool = False,
        seed: int = 0,
    ) -> None:
        known = isinstance(model_name, LanguageModel)
        self.language_model = model_name if known else load_language_model(model_name, device=device)
        self.seed = seed
        config = CrossLayerConfig(
            n_layers=self.language_model.n_layers,
            n_features=num_features,
            d_model=self.language_model.d_model,
            reach=reach,
            skip=skip,
            nonlinearity=nonlinearity or TopKConfig(k=min(16, num_features)),
            language_model=self.language_model.name,
            use_first_position=use_first_position,
        )
        self.transcoder: Transcoder = CrossLayerTranscoder(config, seed=seed).to(self.language_model.device).eval()
        self._trained = False

    @classmethod
    def from_pretrained(cls, name: str = "embedded", device: str = "cpu") -> OpenCrossLayerTranscoder:
        """A language model with the transcoder that ships for it; ``embedded`` needs no network."""
        if name not in _PRETRAINED:
            raise CheckpointError(
                f"No transcoder ships for {name!r}, known are {', '.join(_PRETRAINED)}; "
                "give the directory of one that was trained for it."
            )
        clt = cls(name, device=device)
        clt.load_model(_PRETRAINED[name])
        return clt

    def train_transcoder(
        self,
        texts: Iterable[str],
        batch_size: int = 1024,
        num_epochs: int = 1,
        learning_rate: float = 1e-3,
        *,
        output_dir: str | Path | None = None,
        progress: bool = True,
        **settings: Any,
    ) -> TrainingResult:
        """Train the transcoder from its beginning on texts; ``batch_size`` counts tokens.

        ``settings`` are further settings of ``TrainingConfig.of``, such as ``held_out_contexts`` or ``max_steps``.
        Returns the training's curves and its numbers on held-out contexts.
        """
        settings = {"seed": self.seed, **settings}
        training = TrainingConfig.of(batch_size=batch_size, epochs=num_epochs, learning_rate=learning_rate, **settings)
        return self.train_with(training, texts, output_dir=output_dir, progress=progress)

    def train_with(
        self,
        training: TrainingConfig,
        texts_or_contexts: Iterable[str] | Tensor,
        *,
        output_dir: str | Path | None = None,
        resume: str | Path | None = None,
        progress: bool = True,
        own: OwnParts | None = None,
    ) -> TrainingResult:
        """Train the transcoder with every setting in one config, on texts or on packed contexts of tokens.

        All parameters are those of ``open_clt.train_transcoder``.
        """
        from open_clt.training.run import train_transcoder  # brings Lightning, which only training needs

        result = train_transcoder(
            self.language_model,
            texts_or_contexts,
            self.transcoder.config,
            training,
            output_dir=output_dir,
            resume=resume,
            progress=progress,
            own=own,
        )
        self.transcoder, self._trained = result.transcoder, True
        return result

    def get_feature_activations(self, text: str) -> FeatureActivations:
        """Active features at every position and layer of a text."""
        return feature_activations(self.language_model, self._ready(), text)

    def get_top_features(self, text: str, top_n: int = 10) -> list[TopFeature]:
        """The features with the largest activations on a text, strongest first."""
        return top_features(self.get_feature_activations(text), top_n)

    def visualize_feature_activations(self, text: str, top_n: int = 20, save_path: str | Path | None = None) -> Figure:
        """Heatmap of the ``top_n`` most active features over the tokens of a text; saved as PNG, SVG or PDF."""
        from open_clt.visualization.figures import visualize_feature_heatmap

        return visualize_feature_heatmap(self.get_feature_activations(text), top_n=top_n, save_path=save_path)

    def create_attribution_graph(
        self, text: str, threshold: float = 0.8, save_path: str | Path | None = None
    ) -> AttributionGraph:
        """Why the model goes on from ``text`` as it does: the nodes that hold ``threshold`` of the influence.

        With a ``save_path`` that ends in .png, .svg or .pdf the graph is drawn there; any other is a directory that
        ``AttributionGraph.load`` reads.
        """
        from open_clt.visualization.graph.figure import visualize_attribution_graph

        graph = self.attribute(text).prune(node_threshold=threshold)
        if save_path is not None and Path(save_path).suffix:
            visualize_attribution_graph(graph, save_path=save_path)
        elif save_path is not None:
            graph.save(save_path)
        return graph

    def attribute(self, text: str, **settings: Unpack[AttributionSettings]) -> AttributionGraph:
        """The whole attribution graph of a text, before any pruning; settings are those of ``attribute``."""
        return attribute(self.language_model, self._ready(), text, **settings)

    def attribute_all(
        self, texts: Sequence[str], *, progress: bool = True, **settings: Unpack[AttributionSettings]
    ) -> Iterator[AttributionGraph]:
        """The graphs of several texts, each computed when it is asked for, with a progress bar."""
        return attribute_all(self.language_model, self._ready(), texts, progress=progress, **settings)

    def faithfulness(self, graph: AttributionGraph, *, max_features: int = 32) -> Faithfulness:
        """Whether what a graph of this model predicts is what happens when its features are ablated."""
        from open_clt.evaluation.faithfulness import faithfulness

        return faithfulness(graph, self.replacement_model(), max_features=max_features)

    def replacement_model(self) -> ReplacementModel:
        """The language model with its MLP outputs swapped for the transcoder's reconstructions."""
        from open_clt.replacement.model import ReplacementModel

        return ReplacementModel(self.language_model, self._ready())

    def save_model(self, path: str | Path) -> Path:
        """Write the transcoder to a directory, and return the directory; the language model is not saved with it.

        A directory is written even if its name is that of a file, such as ``transcoder.pt``; a warning then says so.
        """
        directory = save_transcoder(self._ready(), path)
        if directory.suffix in _SUFFIXES_OF_FILES:
            logger.warning("The transcoder is saved as a directory named %s, which load_model reads.", directory)
        return directory

    def load_model(self, path: str | Path) -> None:
        """Take over a transcoder from a directory; raises ConfigError if it does not fit the language model."""
        transcoder = load_transcoder(path, device=self.language_model.device)
        check_fits(transcoder, self.language_model)
        self.transcoder, self._trained = transcoder, True

    def _ready(self) -> Transcoder:
        if not self._trained:
            raise OpenCLTError("The transcoder is untrained; call train_transcoder or load_model first.")
        return self.transcoder
