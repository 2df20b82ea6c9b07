"""Mutations of values: random damage to the values of JSON and YAML files, and to the tensors of safetensors files."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, cast

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

EXTREME_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 10**6, 2**31, -(2**63), 2**63, 10**30, 0.5, -0.0, 1e-300, 1e300, 1e39),
    *(float("nan"), float("inf"), float("-inf")),
    *("", "nan", "x", "../../x", "/dev/zero", "a" * 5000, "\ud800", "\x00", "os.system"),
    *("\u202egnp.x", "e\u0301\u0301", "\u2028", "\uff11", "\u0661", "con", "a\tb", "%s%n{0}", "${HOME}", "~", "."),
    *(5e-324, 3.5e38, -1e38, 2**53 + 1, -(2**31) - 1),
    *([], {}, [[]], [None], {"": None}, {"kind": "relu"}, {"class_path": "os.system", "init_args": {}}),
)
"""Values that replace a value of a JSON or YAML file."""

DTYPES = (torch.int8, torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn)
DTYPES = (*DTYPES, torch.complex64)


def _read_values(path: Path) -> Any:
    content = path.read_bytes()
    if path.suffix == ".yaml":
        return yaml.safe_load(content)
    return json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)


def _write_values(path: Path, values: Any) -> None:
    if path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(values, allow_unicode=False), errors="surrogatepass")
        return
    content = json.dumps(values).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _places(values: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a JSON value."""
    items: list[tuple[Any, Any]] = []
    if isinstance(values, dict):
        items = list(cast(dict[Any, Any], values).items())
    elif isinstance(values, list):
        items = list(enumerate(cast(list[Any], values)))
    return [place for key, value in items for place in ((values, key), *_places(value))]


def _change_values(change: Callable[[Any, Any, Random], None], path: Path, random: Random) -> None:
    """Read the values, change them at a random place, and write them; without any place, replace the whole value."""
    values = _read_values(path)
    places = _places(values)
    if places:
        container, key = random.choice(places)
        change(container, key, random)
    else:
        values = random.choice(EXTREME_VALUES)
    _write_values(path, values)


def replace_value(path: Path, random: Random) -> None:
    def replace(container: Any, key: Any, random: Random) -> None:
        container[key] = random.choice(EXTREME_VALUES)

    _change_values(replace, path, random)


def remove_key(path: Path, random: Random) -> None:
    def remove(container: Any, key: Any, random: Random) -> None:
        del container[key]

    _change_values(remove, path, random)


def add_key(path: Path, random: Random) -> None:
    def add(container: Any, key: Any, random: Random) -> None:
        if isinstance(container, list):
            cast(list[Any], container).insert(key, random.choice(EXTREME_VALUES))
        else:
            container[random.choice(("extra", "", "kind", "a" * 500))] = random.choice(EXTREME_VALUES)

    _change_values(add, path, random)


def nest(path: Path, random: Random) -> None:
    def nest(container: Any, key: Any, random: Random) -> None:
        for _ in range(random.choice((1, 200))):
            container[key] = [container[key]]

    _change_values(nest, path, random)


def duplicate_key(path: Path, random: Random) -> None:
    """Write one key of an object twice, with two values."""
    marker = "duplicated_key"
    names: list[str] = []

    def mark(container: Any, key: Any, random: Random) -> None:
        if isinstance(container, dict):
            names.append(str(key))
            container[marker] = random.choice(EXTREME_VALUES)

    _change_values(mark, path, random)
    for name in names:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        content = content.replace(marker.encode(), json.dumps(name).encode()[1:-1])
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def swap_values(path: Path, random: Random) -> None:
    """Exchange two values, as in a config whose layers and features are exchanged."""
    values = _read_values(path)
    if places := _places(values):
        (one, key), (other, other_key) = random.choice(places), random.choice(places)
        one[key], other[other_key] = copy.deepcopy(other[other_key]), copy.deepcopy(one[key])
    _write_values(path, values)


def scale_number(path: Path, random: Random) -> None:
    """Multiply one number, so that it disagrees with the other files in its size only."""

    def scale(container: Any, key: Any, random: Random) -> None:
        if isinstance(container[key], int | float):
            container[key] *= random.choice((-1, 2, 3, 0.5, 10**6, 1e-30, 1e30))

    _change_values(scale, path, random)


def _change_tensors(change: Callable[[dict[str, Tensor], str, Random], None], path: Path, random: Random) -> None:
    tensors = load_file(path)
    if tensors:
        change(tensors, random.choice(sorted(tensors)), random)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def drop_tensor(path: Path, random: Random) -> None:
    def drop(tensors: dict[str, Tensor], name: str, random: Random) -> None:
        del tensors[name]

    _change_tensors(drop, path, random)


def change_dtype(path: Path, random: Random) -> None:
    def change(tensors: dict[str, Tensor], name: str, random: Random) -> None:
        tensors[name] = tensors[name].to(random.choice(DTYPES))

    _change_tensors(change, path, random)


def change_shape(path: Path, random: Random) -> None:
    def change(tensors: dict[str, Tensor], name: str, random: Random) -> None:
        tensor = tensors[name]
        flat = tensor.flatten()
        shapes = (flat, tensor[None], tensor.mT if tensor.ndim > 1 else flat[:0], flat[:-1])
        tensors[name] = random.choice(shapes).clone()

    _change_tensors(change, path, random)


def set_element(path: Path, random: Random) -> None:
    """Set one element: to a value that is not finite, or that is negative, or that is too large for an index."""

    def change(tensors: dict[str, Tensor], name: str, random: Random) -> None:
        flat = tensors[name].flatten()
        if not len(flat):
            return
        if flat.is_floating_point():
            values = (float("nan"), float("inf"), float("-inf"), -1e30, 1e38, -3e38, -0.0, 1e-45)
            flat[random.randrange(len(flat))] = random.choice(values)
        elif flat.dtype != torch.bool:
            flat[random.randrange(len(flat))] = random.choice((-1, 100, -100))
        tensors[name] = flat.reshape(tensors[name].shape)

    _change_tensors(change, path, random)


def fill_tensor(path: Path, random: Random) -> None:
    def change(tensors: dict[str, Tensor], name: str, random: Random) -> None:
        value = random.choice((float("nan"), 1e38, 0.0, -0.0, 1e-45)) if tensors[name].is_floating_point() else 77
        tensors[name] = torch.full_like(tensors[name], value)

    _change_tensors(change, path, random)


def swap_tensors(path: Path, random: Random) -> None:
    """Exchange the names of two tensors."""

    def swap(tensors: dict[str, Tensor], name: str, random: Random) -> None:
        other = random.choice(sorted(tensors))
        tensors[name], tensors[other] = tensors[other], tensors[name].clone()

    _change_tensors(swap, path, random)


def scale_tensor(path: Path, random: Random) -> None:
    def scale(tensors: dict[str, Tensor], name: str, random: Random) -> None:
        if tensors[name].is_floating_point():
            tensors[name] = tensors[name] * random.choice((-1.0, 1e-40, 1e30, 1e20, 1e38))

    _change_tensors(scale, path, random)


def change_header(path: Path, random: Random) -> None:
    """Change the length of the header, or a number or a name in it."""
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    if random.random() < 0.3:
        content[:8] = random.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little")
    else:
        place = 8 + random.randrange(max(1, length))
        content[place : place + 1] = random.choice((b"0", b"9", b"F", b'"', b",", b"}", b"-"))
    path.write_bytes(content)


OF_VALUES = (replace_value, replace_value, remove_key, add_key, nest, duplicate_key, swap_values, scale_number)
"""Damage to files of JSON and YAML; a value is replaced twice as often."""

OF_TENSORS = (drop_tensor, change_dtype, change_shape, set_element, fill_tensor, swap_tensors, scale_tensor)
OF_TENSORS = (*OF_TENSORS, change_header)
