"""The facade: one object that holds a language model and its transcoder, with a method for each common task.

    clt = OpenCrossLayerTranscoder("embedded", num_features=512)
    clt.train_transcoder(texts)
    clt.visualize_feature_activations("The capital of France is", save_path="features.png")
    clt.create_attribution_graph("The capital of France is", save_path="graph.png")

Each method calls one or two functions of the other modules, which offer more settings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, final

from torch import Tensor

from open_clt.attribution.attribute import AttributionSettings, attribute, attribute_all
from open_clt.attribution.budget import default_budget
from open_clt.config import CrossLayerConfig, NonlinearityConfig, TopKConfig, TrainingConfig
from open_clt.config.arguments import Count, checked_arguments
from open_clt.errors import CheckpointError, ConfigError, OpenCLTError
from open_clt.features.firing import FeatureActivations, TopFeature, feature_activations, top_features
from open_clt.graphs.graph import AttributionGraph, check_place
from open_clt.html_repr import html_repr
from open_clt.language.fits import check_fits
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.language.prompts import Prompt
from open_clt.language.transcoders.named import transcoder_of
from open_clt.memory import memory_errors
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.neurons.source import is_neurons, not_stored
from open_clt.transcoders.neurons.transcoder import NeuronTranscoder
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
"""Suffixes of files in which other programs store weights."""


@final
class OpenCrossLayerTranscoder:
    """A language model with a cross-layer transcoder of its MLPs.

    ``model_name`` is any name or path that ``load_language_model`` accepts, or a ``LanguageModel``. ``num_features`` is
    the number of features per layer, and ``layers`` are the layers that have features, by default all. A new object
    holds an untrained transcoder; call ``train_transcoder`` or ``load_model`` before any method that uses it.
    ``transcoder`` is what ``load_model`` reads: with ``neurons``, the features are the model's own neurons, and nothing
    is trained.
    """

    @checked_arguments
    def __init__(
        self,
        model_name: str | Path | LanguageModel = "gpt2",
        num_features: Count = 512,
        device: str = "cpu",
        *,
        nonlinearity: NonlinearityConfig | None = None,
        reach: int | None = None,
        skip: bool = False,
        layers: Sequence[int] | None = None,
        use_first_position: bool = False,
        seed: int = 0,
        transcoder: str | Path | None = None,
    ) -> None:
        is_loaded = isinstance(model_name, LanguageModel)
        self.language_model = model_name if is_loaded else load_language_model(model_name, device=device)
        self.seed = seed
        config = CrossLayerConfig(
            n_layers=self.language_model.n_layers if layers is None else len(layers),
            layers=None if layers is None else tuple(layers),
            n_features=num_features,
            d_model=self.language_model.d_model,
            reach=reach,
            skip=skip,
            nonlinearity=nonlinearity or TopKConfig(k=min(16, num_features)),
            language_model=self.language_model.name,
            use_first_position=use_first_position,
        )
        check_fits(config, self.language_model)
        with memory_errors(f"A transcoder of {num_features:,} features per layer", "use a smaller num_features"):
            self.transcoder: Transcoder = CrossLayerTranscoder(config, seed=seed).to(self.language_model.device).eval()
        self._trained = False
        self._source: Path | None = None
        if transcoder is not None:
            self.load_model(transcoder)

    _repr_html_ = html_repr

    @property
    def is_trained(self) -> bool:
        """Whether the transcoder is trained or loaded, so that the methods can use it."""
        return self._trained

    def __repr__(self) -> str:
        transcoder = f"<{type(self.transcoder).__name__} of {self.transcoder.config.n_features} features per layer>"
        trained = "" if self._trained else ", untrained"
        return f"{type(self).__name__}({self.language_model!r}, {transcoder}{trained})"

    @classmethod
    @checked_arguments
    def from_pretrained(cls, name: str = "embedded", device: str = "cpu") -> OpenCrossLayerTranscoder:
        """Load a language model and the transcoder that ships with the package; ``embedded`` needs no network."""
        if name not in _PRETRAINED:
            raise CheckpointError(
                f"The package ships no transcoder for {name!r}, only for {', '.join(_PRETRAINED)}; "
                "give the directory of a transcoder that was trained for this model."
            )
        clt = cls(name, device=device)
        clt.load_model(_PRETRAINED[name])
        return clt

    @checked_arguments
    def train_transcoder(
        self,
        texts: Iterable[str],
        batch_size: int = 1024,
        num_epochs: int = 1,
        learning_rate: float = 1e-3,
        *,
        output_dir: str | Path | None = None,
        overwrite: bool = False,
        progress: bool = True,
        **settings: Any,
    ) -> TrainingResult:
        """Train a new transcoder on texts, which replaces the present one; ``batch_size`` is a number of tokens.

        ``settings`` are further settings of ``TrainingConfig.of``, such as ``held_out_contexts`` or ``max_steps``.
        ``overwrite`` replaces a former run in ``output_dir``, and leaves files that OpenCLT did not write alone.
        Returns the transcoder, the curves of the training run, and metrics on held-out contexts.
        """
        if "epochs" in settings:
            raise ConfigError(f"epochs is {settings['epochs']}; this method calls the setting num_epochs.")
        settings = {"seed": self.seed, **settings}
        training = TrainingConfig.of(batch_size=batch_size, epochs=num_epochs, learning_rate=learning_rate, **settings)
        return self.train_with(training, texts, output_dir=output_dir, overwrite=overwrite, progress=progress)

    @checked_arguments
    def train_with(
        self,
        training: TrainingConfig,
        texts_or_contexts: Iterable[str] | Tensor,
        *,
        output_dir: str | Path | None = None,
        overwrite: bool = False,
        resume: str | Path | None = None,
        progress: bool = True,
        own: OwnParts | None = None,
    ) -> TrainingResult:
        """Train a new transcoder on texts or on packed contexts of tokens, with all settings in one ``TrainingConfig``.

        The parameters have the same meaning as in ``open_clt.train_transcoder``.
        """
        from open_clt.training.run import train_transcoder  # imports Lightning, which only training needs

        if isinstance(self.transcoder, NeuronTranscoder):
            raise not_stored("trained")
        result = train_transcoder(
            self.language_model,
            texts_or_contexts,
            self.transcoder.config,
            training,
            output_dir=output_dir,
            overwrite=overwrite,
            resume=resume,
            progress=progress,
            own=own,
        )
        self.transcoder, self._trained, self._source = result.transcoder, True, None
        return result

    @checked_arguments
    def get_feature_activations(self, text: str) -> FeatureActivations:
        """Compute the active features at every position and layer of a text."""
        return feature_activations(self.language_model, self._ready(), text)

    @checked_arguments
    def get_top_features(self, text: str, top_n: Count = 10) -> list[TopFeature]:
        """Return the ``top_n`` features with the largest activations on a text, strongest first."""
        return top_features(self.get_feature_activations(text), top_n)

    @checked_arguments
    def visualize_feature_activations(
        self,
        text: str,
        top_n: Count = 20,
        save_path: str | Path | None = None,
        *,
        labels: Mapping[Feature, str] | None = None,
    ) -> Figure:
        """Draw a heatmap of the ``top_n`` most active features of a text; ``save_path`` ends in .png, .svg or .pdf.

        ``labels`` are labels of features, which stand beside their names.
        """
        from open_clt.visualization.figures import visualize_feature_heatmap

        self._ready()
        return visualize_feature_heatmap(self, text, labels=labels, top_n=top_n, save_path=save_path)

    @checked_arguments
    def create_attribution_graph(
        self, text: Prompt, threshold: float = 0.8, save_path: str | Path | None = None, *, chat: bool = False
    ) -> AttributionGraph:
        """Compute the attribution graph of a text, pruned to the nodes that hold ``threshold`` of the influence.

        ``chat`` applies the chat template of the language model to a text or to messages. A ``save_path`` with a suffix
        (.png, .svg or .pdf) is a picture of the graph. A ``save_path`` without a suffix is a directory for the graph,
        which ``AttributionGraph.load`` reads.
        """
        from open_clt.visualization.graph.figure import visualize_attribution_graph
        from open_clt.visualization.style import check_save_path

        if save_path is not None:
            check = check_save_path if Path(save_path).suffix else check_place
            check(Path(save_path))
        graph = self.attribute(text, chat=chat).prune(node_threshold=threshold)
        if save_path is not None and Path(save_path).suffix:
            visualize_attribution_graph(graph, save_path=save_path)
        elif save_path is not None:
            graph.save(save_path)
        return graph

    @checked_arguments
    def attribute(self, text: Prompt, **settings: Unpack[AttributionSettings]) -> AttributionGraph:
        """Compute the whole attribution graph of a text, without pruning; ``settings`` are those of ``attribute``.

        If the transcoder has a calibration, as the embedded one has, the features have their ``confidence``. Of
        neurons, which are all active, rows are computed for the 2,048 most influential; ``max_feature_nodes=None``
        computes all.
        """
        return self._with_confidence()(
            attribute(self.language_model, self._ready(), text, **self._with_budget(settings))
        )

    def _with_budget(self, settings: AttributionSettings) -> AttributionSettings:
        return {"max_feature_nodes": default_budget(self._ready()), **settings}

    @checked_arguments
    def attribute_all(
        self, texts: Sequence[Prompt], *, progress: bool = True, **settings: Unpack[AttributionSettings]
    ) -> Iterator[AttributionGraph]:
        """Yield the attribution graph of each text, one after the other, with a progress bar."""
        settings = self._with_budget(settings)
        graphs = attribute_all(self.language_model, self._ready(), texts, progress=progress, **settings)
        return map(self._with_confidence(), graphs)

    @checked_arguments
    def faithfulness(self, graph: AttributionGraph, *, max_features: Count = 32) -> Faithfulness:
        """Compare the predictions of a graph with the effects of ablating up to ``max_features`` of its features."""
        from open_clt.evaluation.faithfulness import faithfulness

        return faithfulness(graph, self.replacement_model(), max_features=max_features)

    @checked_arguments
    def write_report(
        self,
        text: Prompt,
        path: str | Path,
        *,
        features: str | Path | None = None,
        texts: Iterable[str] | Tensor | None = None,
        **settings: Unpack[AttributionSettings],
    ) -> Path:
        """Write one HTML file about a text: both models' predictions, the attribution graph, features, faithfulness.

        Examples of features come from feature files in the directory ``features``, or else from ``texts``; without
        both, from records in the transcoder's directory, the cache or the package. The function
        ``open_clt.write_report`` has more settings. Returns the path, which ends in .html.
        """
        from open_clt.visualization.prompt_report.report import write_report

        transcoder, settings = self._ready(), self._with_budget(settings)
        return write_report(
            self.language_model,
            transcoder,
            text,
            path,
            source=self._source,
            features=features,
            texts=texts,
            **settings,
        )

    def replacement_model(self) -> ReplacementModel:
        """Return the language model with its MLP outputs replaced by the transcoder's reconstructions."""
        from open_clt.replacement.model import ReplacementModel

        return ReplacementModel(self.language_model, self._ready())

    @checked_arguments
    def save_model(self, path: str | Path) -> Path:
        """Save the transcoder, without the language model, in a directory; return the directory.

        If ``path`` looks like a file, such as ``transcoder.pt``, a directory of that name is written all the same, and
        a warning says so.
        """
        directory = save_transcoder(self._ready(), path)
        if directory.suffix in _SUFFIXES_OF_FILES:
            logger.warning("The transcoder is saved in a directory named %s, which load_model reads.", directory)
        return directory

    @checked_arguments
    def load_model(self, path: str | Path, *, own_class: type[Any] | None = None, trust_code: bool = False) -> None:
        """Load a transcoder; raise ConfigError if it does not fit the language model.

        ``path`` is a directory, a name on the hub, or ``neurons``: the model's own neurons, which need no training.
        Otherwise, it, ``own_class`` and ``trust_code`` are those of ``load_transcoder``.
        """
        self.transcoder = transcoder_of(self.language_model, path, own_class=own_class, trust_code=trust_code)
        self._trained = True
        self._source = None if is_neurons(path) else Path(path)

    def _ready(self) -> Transcoder:
        if not self._trained:
            raise OpenCLTError("The transcoder is untrained; call train_transcoder or load_model first.")
        return self.transcoder

    def _with_confidence(self) -> Callable[[AttributionGraph], AttributionGraph]:
        """Return what adds confidence to graphs of the present transcoder, also after another one is loaded."""
        from open_clt.evaluation.calibration import with_stored_confidence

        return partial(with_stored_confidence, transcoder=self._ready(), source=self._source)
