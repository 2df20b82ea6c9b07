"""Every kind of transcoder equals its equations, can be saved and folded, and computes each token alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import open_clt.embedded
from open_clt.config import (
    BatchTopKConfig,
    CrossLayerConfig,
    JumpReLUConfig,
    NonlinearityConfig,
    ReLUConfig,
    TopKConfig,
)
from open_clt.errors import CheckpointError, ConfigError, NotFiniteError
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.make import make_transcoder
from open_clt.transcoders.molt import Molt
from open_clt.transcoders.sparse.codes import SparseFeatures, dense
from tests.random_transcoders import ARCHITECTURES, architecture, random_architecture
from tests.reference.dense_transcoder import decode_by_loops, nested_by_loops, preactivations_by_loops
from tests.refusals import refuses

NONLINEARITIES: list[NonlinearityConfig] = [
    ReLUConfig(),
    JumpReLUConfig(initial_threshold=0.4),
    TopKConfig(k=5),
    TopKConfig(k=5, offsets=True),
    BatchTopKConfig(k=5),
    BatchTopKConfig(k=5, across_layers=True),
]
MATRYOSHKAS = [name for name in ARCHITECTURES if name.startswith("matryoshka")]
each_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
each_nonlinearity = pytest.mark.parametrize("nonlinearity", NONLINEARITIES, ids=str)


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(7, 3, 8, generator=torch.Generator().manual_seed(0))


@each_architecture
@each_nonlinearity
def test_the_forward_pass_equals_a_double_loop(
    name: str, nonlinearity: NonlinearityConfig, inputs: torch.Tensor
) -> None:
    transcoder = random_architecture(architecture(name, nonlinearity=nonlinearity))
    output = transcoder(inputs)
    features = torch.stack([dense(layer) for layer in output.features], dim=1)
    expected = decode_by_loops(transcoder, features, inputs)
    torch.testing.assert_close(output.reconstruction, expected, atol=1e-5, rtol=1e-4)
    codes = transcoder.encode(inputs)
    assert all(isinstance(layer, SparseFeatures) and (layer.values != 0).all() for layer in codes)
    torch.testing.assert_close(torch.stack([layer.dense() for layer in codes], dim=1), features)
    torch.testing.assert_close(transcoder.decode(codes, inputs), expected, atol=1e-5, rtol=1e-4)


@each_architecture
def test_an_input_that_is_not_finite_is_named(name: str, inputs: torch.Tensor) -> None:
    inputs[3, 1, 5] = torch.nan
    with refuses(NotFiniteError, "token 3", "layer 1", "nan"):
        random_architecture(architecture(name))(inputs)


@each_architecture
def test_gradients_of_training_equal_those_of_dense_products(name: str, inputs: torch.Tensor) -> None:
    """The gradients of all parameters are compared; the dense computation uses the selected entries as they are."""
    transcoder = random_architecture(architecture(name, nonlinearity=TopKConfig(k=2))).double()
    inputs = inputs.double()
    output = transcoder(inputs)
    direction = torch.randn_like(output.reconstruction)
    parameters = list(transcoder.parameters())
    actual = torch.autograd.grad((output.reconstruction * direction).sum(), parameters)
    pre = preactivations_by_loops(transcoder, inputs)
    features = pre * (torch.stack([dense(layer) for layer in output.features], dim=1) > 0)
    expected = torch.autograd.grad((decode_by_loops(transcoder, features, inputs) * direction).sum(), parameters)
    torch.testing.assert_close(actual, expected)


@each_architecture
@each_nonlinearity
@pytest.mark.parametrize("training", [True, False])
def test_errors_equal_targets_minus_the_forward_pass_with_the_same_gradients(
    name: str, nonlinearity: NonlinearityConfig, training: bool, inputs: torch.Tensor
) -> None:
    """Errors are standardised, and computed for each prefix; the decoder norms are compared too."""
    transcoder = random_architecture(architecture(name, nonlinearity=nonlinearity)).double().train(training)
    inputs, targets = inputs.double(), torch.randn(7, 3, 8, dtype=torch.float64)
    stats = transcoder.standardisation
    assert not torch.equal(stats.targets(targets), targets)
    actual = transcoder.errors(inputs, targets, norms=True)
    norms = transcoder.decoder_norms()
    if name in MATRYOSHKAS:
        assert isinstance(transcoder, CrossLayerTranscoder)
        features, reconstructions = transcoder.nested(inputs)
    else:
        features, reconstruction = transcoder(inputs)
        reconstructions = reconstruction[None]
    expected = (targets - reconstructions) / stats.target_scale[:, None]
    torch.testing.assert_close(torch.stack(actual.errors), expected)
    torch.testing.assert_close(actual.decoder_norms, norms)
    for actual_layer, expected_layer in zip(actual.features, features, strict=True):
        torch.testing.assert_close(dense(actual_layer), dense(expected_layer))

    directions = torch.randn_like(expected), torch.randn_like(norms)
    parameters = dict(transcoder.named_parameters())
    assert actual.decoder_norms is not None
    actual_gradients, expected_gradients = (
        torch.autograd.grad(
            (errors * directions[0]).sum() + (weights * directions[1]).sum(), parameters.values(), allow_unused=True
        )
        for errors, weights in ((torch.stack(actual.errors), actual.decoder_norms), (expected, norms))
    )
    for key, gradient, expected_gradient in zip(parameters, actual_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, msg=lambda text, key=key: f"{key}: {text}")
    assert transcoder.errors(inputs, targets).decoder_norms is None


@each_architecture
@each_nonlinearity
def test_a_saved_and_loaded_transcoder_gives_identical_outputs(
    name: str, nonlinearity: NonlinearityConfig, inputs: torch.Tensor, tmp_path: Path
) -> None:
    transcoder = random_architecture(architecture(name, nonlinearity=nonlinearity))
    loaded = load_transcoder(save_transcoder(transcoder, tmp_path))
    assert type(loaded) is type(transcoder)
    assert loaded.config == transcoder.config
    assert torch.equal(loaded(inputs).reconstruction, transcoder(inputs).reconstruction)
    folded = load_transcoder(save_transcoder(transcoder.folded(), tmp_path))
    assert torch.equal(folded(inputs).reconstruction, transcoder.folded()(inputs).reconstruction)


@each_architecture
@each_nonlinearity
def test_folding_does_not_change_outputs(name: str, nonlinearity: NonlinearityConfig, inputs: torch.Tensor) -> None:
    transcoder = random_architecture(architecture(name, nonlinearity=nonlinearity))
    folded = transcoder.folded()
    assert torch.equal(folded.standardisation.inputs(inputs), inputs)
    expected = transcoder(inputs).reconstruction
    torch.testing.assert_close(folded(inputs).reconstruction, expected, atol=1e-4, rtol=1e-4)
    if isinstance(nonlinearity, TopKConfig):
        with refuses(ConfigError, "JumpReLU"):
            folded.with_unit_decoders()
        return
    unit = folded.with_unit_decoders()
    torch.testing.assert_close(unit.decoder_norms(), torch.ones_like(unit.b_enc), atol=1e-5, rtol=0)
    torch.testing.assert_close(unit(inputs).reconstruction, expected, atol=1e-4, rtol=1e-4)
    for after, before in zip(unit.encode(inputs), folded.encode(inputs), strict=True):
        assert torch.equal(after.features, before.features)


@each_architecture
@each_nonlinearity
def test_a_tokens_features_do_not_depend_on_its_batch(
    name: str, nonlinearity: NonlinearityConfig, inputs: torch.Tensor
) -> None:
    transcoder = random_architecture(architecture(name, nonlinearity=nonlinearity))
    of_batch = transcoder.encode(inputs)
    of_token = transcoder.encode(inputs[3:4])
    for layer in range(3):
        torch.testing.assert_close(of_token[layer].dense(), of_batch[layer].dense()[3:4])
        assert torch.equal(of_token[layer].dense() > 0, of_batch[layer].dense()[3:4] > 0)


@pytest.mark.parametrize("name", MATRYOSHKAS)
@each_nonlinearity
def test_nested_reconstructions_are_those_of_the_first_features_alone(
    name: str, nonlinearity: NonlinearityConfig, inputs: torch.Tensor
) -> None:
    transcoder = random_architecture(architecture(name, nonlinearity=nonlinearity))
    assert isinstance(transcoder, CrossLayerTranscoder)
    features, reconstructions = transcoder.nested(inputs)
    codes = torch.stack([dense(layer) for layer in features], dim=1)
    expected = nested_by_loops(transcoder, codes, inputs)
    torch.testing.assert_close(reconstructions, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(reconstructions[-1], transcoder(inputs).reconstruction, atol=1e-5, rtol=1e-4)
    size = transcoder.config.prefixes[-1]
    if isinstance(nonlinearity, TopKConfig):
        with refuses(ConfigError, "TopK"):
            transcoder.prefix(size)
        return
    prefix = transcoder.prefix(size)
    assert (prefix.config.n_features, prefix.config.prefixes) == (size, transcoder.config.prefixes[:-1])
    torch.testing.assert_close(prefix(inputs).reconstruction, reconstructions[-2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("nonlinearity", [ReLUConfig(), TopKConfig(k=5)], ids=str)
def test_nested_gradients_equal_those_of_dense_products(nonlinearity: NonlinearityConfig, inputs: torch.Tensor) -> None:
    transcoder = random_architecture(architecture("matryoshka clt", nonlinearity=nonlinearity)).double()
    assert isinstance(transcoder, CrossLayerTranscoder)
    inputs = inputs.double()
    features, reconstructions = transcoder.nested(inputs)
    direction = torch.randn_like(reconstructions)
    parameters = list(transcoder.parameters())
    actual = torch.autograd.grad((reconstructions * direction).sum(), parameters)
    codes = preactivations_by_loops(transcoder, inputs) * (torch.stack([dense(f) for f in features], dim=1) > 0)
    expected = torch.autograd.grad((nested_by_loops(transcoder, codes, inputs) * direction).sum(), parameters)
    torch.testing.assert_close(actual, expected)


def test_the_decoder_norm_of_a_transform_is_its_frobenius_norm() -> None:
    molt = random_architecture(architecture("molt"))
    assert isinstance(molt, Molt)
    for layer in range(3):
        for transform in range(molt.config.n_features):
            matrix = molt.matrix(layer, transform)
            expected_rank = (4, 2, 1)[(transform >= 4) + (transform >= 12)]
            assert torch.linalg.matrix_rank(matrix) == expected_rank
            torch.testing.assert_close(molt.decoder_norms()[layer, transform], matrix.norm())


def test_the_same_seed_gives_the_same_weights() -> None:
    for name in ("clt", "molt"):
        states = [make_transcoder(architecture(name), seed=seed).state_dict() for seed in (3, 3, 4)]
        assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
        assert not torch.equal(states[0]["W_enc"], states[2]["W_enc"])


def test_initial_weights_of_a_molt_are_uniform_within_bounds_of_its_width_and_ranks() -> None:
    """The bounds are 1/sqrt(n_features) for gates, 1/sqrt(d_model) for reads, 1/sqrt(n_layers d_model rank) else."""
    molt = make_transcoder(architecture("molt", d_model=40, ranks=(9, 2), counts=(30, 120)))
    assert isinstance(molt, Molt)
    for layer in range(3):
        large, small = molt.W_write[layer][: 9 * 30], molt.W_write[layer][9 * 30 :]
        written = ((large, (3 * 40 * 9) ** -0.5), (small, (3 * 40 * 2) ** -0.5))
        for values, bound in ((molt.W_enc[layer], 150**-0.5), (molt.W_read[layer], 40**-0.5), *written):
            assert 0.98 * bound < values.abs().max() <= bound
            assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_checkpoints_of_format_version_1_are_loaded(tmp_path: Path, inputs: torch.Tensor) -> None:
    transcoder = random_architecture(architecture("reach 2", nonlinearity=BatchTopKConfig(k=5)))
    path = save_transcoder(transcoder, tmp_path) / "config.json"
    content = json.loads(path.read_text())
    content["format_version"] = 1
    for key in ("kind", "prefixes"):
        del content["transcoder"][key]
    for key in ("initial_k", "anneal_share"):
        del content["transcoder"]["nonlinearity"][key]
    path.write_text(json.dumps(content))
    assert load_transcoder(tmp_path).config == transcoder.config
    assert torch.equal(load_transcoder(tmp_path)(inputs).reconstruction, transcoder(inputs).reconstruction)
    shipped = load_transcoder(Path(open_clt.embedded.__file__).parent / "transcoder")
    assert isinstance(shipped, CrossLayerTranscoder)


def test_a_checkpoint_of_an_unknown_kind_is_one_clear_error(tmp_path: Path) -> None:
    path = save_transcoder(random_architecture(architecture("molt")), tmp_path) / "config.json"
    path.write_text(path.read_text().replace('"molt"', '"lorsa"'))
    with refuses(CheckpointError, "lorsa"):
        load_transcoder(tmp_path)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"prefixes": (20, 7)}, "prefixes"),
        ({"prefixes": (40,)}, "prefixes n_features 40"),
        ({"prefixes": (0, 4)}, "prefixes 1"),
        ({"nonlinearity": TopKConfig(k=5, initial_k=41)}, "initial_k 41"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], named: str) -> None:
    values = {"nonlinearity": TopKConfig(k=5), **settings}
    with refuses(ConfigError, *named.split()):
        CrossLayerConfig(n_layers=3, n_features=40, d_model=8, **values)


@pytest.mark.parametrize("settings", [{"ranks": ()}, {"ranks": (4, 0, 1)}, {"counts": (4, 8)}])
def test_a_molt_without_a_count_for_each_rank_is_refused(settings: dict[str, tuple[int, ...]]) -> None:
    with refuses(ConfigError, "ranks", "counts"):
        architecture("molt", **settings)
