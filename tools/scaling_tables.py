"""Tables of docs/scaling.md, printed from the formulas of ``open_clt.training.parallel.scaling``.

A test compares the page with these tables. After a change of a formula, run this script and paste its output into the
page.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from open_clt.config import CrossLayerConfig, TopKConfig
from open_clt.training.parallel.scaling import (
    Hardware,
    Layout,
    StepTime,
    memory,
    parameters,
    reaches,
    step_time,
    traffic,
)

# Sustained rates, one half to two thirds of those in an H100's data sheet: NVLink inside a machine of eight GPUs, and
# 400 Gbit/s per GPU between machines.
H100 = Hardware(flops=300e12, memory=2e12, shard_link=200e9, replica_link=25e9)
GPUS_OF_A_MACHINE = 8


class Plan(NamedTuple):
    """A transcoder, and layouts in which it could be trained."""

    name: str
    config: CrossLayerConfig
    layouts: list[tuple[Layout, int]]
    """Layouts of the processes, each with its batch size."""


def _clt(n_layers: int, d_model: int, n_features: int, k: int) -> CrossLayerConfig:
    return CrossLayerConfig(n_layers=n_layers, d_model=d_model, n_features=n_features, nonlinearity=TopKConfig(k=k))


PLANS = [
    Plan(
        "GPT-2",
        _clt(12, 768, 24_576, 16),
        [(Layout(1, 1), 4096), (Layout(8, 1), 4096), (Layout(1, 8), 32_768), (Layout(4, 2), 8192)],
    ),
    Plan(
        "Llama-3.2-1B", _clt(16, 2048, 32_768, 32), [(Layout(4, 1), 4096), (Layout(8, 1), 4096), (Layout(8, 4), 16_384)]
    ),
    Plan(
        "Llama-3.1-8B",
        _clt(32, 4096, 16_384, 32),
        [(Layout(8, 1), 2048), (Layout(8, 4), 8192), (Layout(8, 16), 32_768)],
    ),
]


def parameter_table(plans: list[Plan]) -> Iterator[str]:
    """The table of parameters and their memory."""
    names = "transcoder of", "layers", "d_model", "features a layer", "k", "S", "parameters", "with gradients and Adam"
    yield from _head(*names)
    for name, config, _ in plans:
        count = sum(parameters(config))
        shape = config.n_layers, config.d_model, config.n_features, _k(config), reaches(config)
        yield _row(name, *(f"{size:,}" for size in shape), f"{count / 1e9:.2f} G", _gigabytes(16 * count))


def layout_table(plans: list[Plan]) -> Iterator[str]:
    """The table of memory and traffic of a step for each device."""
    names = "shards × replicas", "batch", "weights", "activations", "sent: shards", "sent: replicas"
    yield from _head("transcoder of", *names)
    for name, config, layouts in plans:
        for layout, batch in layouts:
            sizes = *memory(config, batch, layout), *traffic(config, batch, layout).sent(layout)
            yield _row(name, _shape(layout), f"{batch:,}", *map(_gigabytes, sizes))


def time_table(plans: list[Plan], hardware: Hardware) -> Iterator[str]:
    """The table of the time of a step and of its parts."""
    yield from _head("transcoder of", "shards × replicas", *StepTime._fields, "step", "tokens a second")
    for name, config, layouts in plans:
        for layout, batch in layouts:
            fits_machine = layout.shards * layout.replicas <= GPUS_OF_A_MACHINE
            rates = hardware._replace(replica_link=hardware.shard_link) if fits_machine else hardware
            time = step_time(config, float(_k(config)), batch, layout, rates)
            parts = (f"{part * 1e3:.0f} ms" if part else "–" for part in (*time, time.total))
            yield _row(name, _shape(layout), *parts, f"{round(batch / time.total, -2):,.0f}")


def _head(*names: str) -> Iterator[str]:
    yield _row(*names)
    yield "|" + "---|" * len(names)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _k(config: CrossLayerConfig) -> int:
    assert isinstance(config.nonlinearity, TopKConfig)
    return config.nonlinearity.k


def _shape(layout: Layout) -> str:
    return f"{layout.shards} × {layout.replicas}"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size else "–"


def tables() -> list[str]:
    """All tables of the page, in its order."""
    return ["\n".join(table) for table in (parameter_table(PLANS), layout_table(PLANS), time_table(PLANS, H100))]


if __name__ == "__main__":
    print("\n\n".join(tables()))
