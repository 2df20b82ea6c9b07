"""CLT weights in circuit-tracer's layout, which inference libraries and Neuronpedia read too.

    config.yaml            model_name, model_kind, feature_input_hook, feature_output_hook, scan
    W_enc_{l}.safetensors  W_enc_{l} [feature, d_model], b_enc_{l} [feature], b_dec_{l} [d_model],
                           threshold_{l} [feature] (JumpReLU only)
    W_dec_{l}.safetensors  W_dec_{l} [feature, n_layers - l, d_model]; slice j writes to layer l + j

Nothing is standardised there, so what is written is folded first; and a feature depends on its own pre-activation only,
so TopK, which ranks features against each other, cannot be written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from open_clt.config import CrossLayerConfig, JumpReLUConfig, ReLUConfig
from open_clt.errors import CheckpointError
from open_clt.models.architectures import own_architecture
from open_clt.models.checkpoint import load_transcoder
from open_clt.models.cross_layer import CrossLayerTranscoder
from open_clt.models.nonlinearities import JumpReLU, ReLU
from open_clt.models.transcoder import Transcoder

_KIND = "cross_layer_transcoder"
_OURS, _THEIRS = "config.json", "W_enc_0.safetensors"
"""Files that tell the layouts of transcoders apart."""


def holds_transcoder(directory: str | Path) -> bool:
    """Whether a directory looks like a transcoder's, of OpenCLT's own layout or of circuit-tracer's."""
    return any((Path(directory) / name).is_file() for name in (_OURS, _THEIRS))


def read_transcoder(directory: str | Path, *, device: str | torch.device = "cpu") -> Transcoder:
    """Read a transcoder of OpenCLT's own layout or of circuit-tracer's; raises CheckpointError on anything else."""
    directory = Path(directory)
    if (directory / _THEIRS).is_file() and not (directory / _OURS).is_file():
        return load_circuit_tracer(directory).to(device)
    return load_transcoder(directory, device=device)


@torch.no_grad()
def load_circuit_tracer(directory: str | Path) -> CrossLayerTranscoder:
    """Read a cross-layer transcoder in circuit-tracer's layout; raises CheckpointError on anything else."""
    directory = Path(directory)
    settings = _settings(directory / "config.yaml")
    if settings.get("model_kind") != _KIND:
        raise CheckpointError(f"{directory} has model_kind {settings.get('model_kind')!r}; only {_KIND!r} can be read.")
    encoders = _layers(directory, "W_enc")
    decoders = _layers(directory, "W_dec")
    if not encoders or len(encoders) != len(decoders):
        raise CheckpointError(
            f"{directory} holds {len(encoders)} encoders and {len(decoders)} decoders; files are missing."
        )
    n_features, d_model = encoders[0]["W_enc_0"].shape
    jump = "threshold_0" in encoders[0]
    config = CrossLayerConfig(
        n_layers=len(encoders),
        n_features=n_features,
        d_model=d_model,
        nonlinearity=JumpReLUConfig() if jump else ReLUConfig(),
        input_hook=settings.get("feature_input_hook", "hook_resid_mid"),
        target_hook=settings.get("feature_output_hook", "hook_mlp_out"),
        language_model=settings.get("model_name"),
    )
    transcoder = CrossLayerTranscoder(config)
    for layer, (encoder, decoder) in enumerate(zip(encoders, decoders, strict=True)):
        for target, name in (
            (transcoder.W_enc[layer], "W_enc"), (transcoder.b_enc[layer], "b_enc"), (transcoder.b_dec[layer], "b_dec")
        ):  # fmt: skip
            _fill(target, encoder, f"{name}_{layer}", directory)
        _fill(transcoder.W_dec[layer], decoder, f"W_dec_{layer}", directory)
        if isinstance(transcoder.nonlinearity, JumpReLU):
            _fill(transcoder.nonlinearity.log_threshold[layer], encoder, f"threshold_{layer}", directory)
            transcoder.nonlinearity.log_threshold[layer].log_()
    return transcoder.eval()


@torch.no_grad()
def save_circuit_tracer(transcoder: Transcoder, directory: str | Path, *, scan: str = "./features") -> Path:
    """Write a transcoder in circuit-tracer's layout, standardisation folded; a limited reach is padded with zeros.

    Raises CheckpointError for what the layout cannot say: TopK, a skip path, and transforms in place of decoders.
    """
    if not isinstance(transcoder, CrossLayerTranscoder):
        raise CheckpointError(
            "The transforms of a MOLT have no place in circuit-tracer's layout, which holds decoders."
        )
    if (own := own_architecture(transcoder)) is not None:
        raise CheckpointError(
            f"circuit-tracer's layout holds plain cross-layer transcoders; what a {own.class_path} computes has no "
            "place in it."
        )
    if transcoder.config.skip:
        raise CheckpointError(
            "A skip path has no place in circuit-tracer's CLT layout; train with skip=False to export."
        )
    if transcoder.nonlinearity.threshold(0) is None:
        raise CheckpointError("TopK has no thresholds to export; convert the transcoder to JumpReLU first.")
    folded = transcoder.folded()
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for layer in range(transcoder.config.n_layers):
        encoder = {"W_enc": folded.W_enc[layer], "b_enc": folded.b_enc[layer], "b_dec": folded.b_dec[layer]}
        threshold = folded.nonlinearity.threshold(layer)
        if threshold is not None and not isinstance(folded.nonlinearity, ReLU):
            encoder["threshold"] = threshold
        table = folded.W_dec[layer]
        padding = transcoder.config.n_layers - layer - table.shape[1]
        save_file(_named(encoder, layer), directory / f"W_enc_{layer}.safetensors")
        save_file(
            _named({"W_dec": functional.pad(table, (0, 0, 0, padding))}, layer),
            directory / f"W_dec_{layer}.safetensors",
        )
    settings = {
        "model_name": transcoder.config.language_model or "unknown",
        "model_kind": _KIND,
        "feature_input_hook": transcoder.config.input_hook,
        "feature_output_hook": transcoder.config.target_hook,
        "scan": scan,
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return directory


def _named(tensors: dict[str, Tensor], layer: int) -> dict[str, Tensor]:
    return {f"{name}_{layer}": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, so {path.parent} is no transcoder in circuit-tracer's layout.")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise CheckpointError(f"{path} is no readable YAML: {error}") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} holds no settings; it should name model_kind and the hooks.")
    return cast(dict[str, Any], settings)


def _layers(directory: Path, stem: str) -> list[dict[str, Tensor]]:
    """Tensors of ``{stem}_0``, ``{stem}_1``, ... as far as the files go."""
    layers: list[dict[str, Tensor]] = []
    while (path := directory / f"{stem}_{len(layers)}.safetensors").is_file():
        try:
            layers.append(load_file(path))
        except SafetensorError as error:
            raise CheckpointError(f"{path} is no whole safetensors file ({error}); it may be truncated.") from error
    return layers


def _fill(target: Tensor, tensors: dict[str, Tensor], name: str, where: Path) -> None:
    if name not in tensors:
        raise CheckpointError(f"{where} lacks the tensor {name!r}.")
    if tensors[name].shape != target.shape:
        raise CheckpointError(f"{where}: {name!r} has shape {tuple(tensors[name].shape)}, not {tuple(target.shape)}.")
    target.copy_(tensors[name])
