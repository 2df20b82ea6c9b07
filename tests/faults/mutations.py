"""Mutations: random damage to one file of an artefact, the same for the same seed.

Damage has four ways: the bytes of a file; the values of JSON and YAML; the tensors of safetensors; and the file itself,
which becomes a directory, a FIFO, a link to an endless device, or nothing.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, TypeAlias, cast

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

Mutation: TypeAlias = Callable[[Path, Random], None]

SHARES = {"bytes": 3, "text": 2, "values": 6, "file": 1}
"""How often each way of damage is chosen; files without values (pictures) have their bytes damaged instead."""

EXTREME_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 10**6, 2**31, -(2**63), 2**63, 10**30, 0.5, -0.0, 1e-300, 1e300, 1e39),
    *(float("nan"), float("inf"), float("-inf")),
    *("", "nan", "x", "../../x", "/dev/zero", "a" * 5000, "\ud800", "\x00", "os.system"),
    *([], {}, [[]], [None], {"": None}, {"kind": "relu"}, {"class_path": "os.system", "init_args": {}}),
)
"""Values that replace a value of a JSON or YAML file."""

BYTE_SEQUENCES = (b"", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r", b"\x1f\x8b", b"NaN", b"1e999", b"-", b'"', b"{" * 3000)
BYTE_SEQUENCES = (*BYTE_SEQUENCES, b"9" * 5000, b"\xed\xa0\x80", b"&a ", b"*a ", b"!!python/object:os.system ")

DTYPES = (torch.int8, torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn)
DTYPES = (*DTYPES, torch.complex64)


def mutate(folder: Path, random: Random) -> str:
    """Damage one file below ``folder``, and return what was done to it."""
    path = random.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    way = random.choices(list(SHARES), list(SHARES.values()))[0]
    mutations: dict[str, tuple[Mutation, ...]] = {
        "bytes": (_cut, _overwrite_bytes, _insert_bytes, _repeat_bytes, _empty),
        "text": (_byte_order_mark, _swap_lines, _drop_line, _duplicate_line, _encode_again),
        "values": _value_mutations(path),
        "file": (_remove, _make_directory, _make_fifo, _make_endless, _compress),
    }
    mutation = random.choice(mutations[way])
    mutation(path, random)
    return f"{mutation.__name__.strip('_')} of {path.relative_to(folder)}"


def _value_mutations(path: Path) -> tuple[Mutation, ...]:
    match path.suffix:
        case ".json" | ".yaml" | ".gz":
            return _replace_value, _replace_value, _remove_key, _add_key, _nest
        case ".safetensors":
            return _drop_tensor, _change_dtype, _change_shape, _set_element, _fill_tensor, _change_header
        case _:
            return _replace_number, _overwrite_bytes


def _cut(path: Path, random: Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(len(content) + 1)])


def _overwrite_bytes(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(random.choice((1, 1, 2, 8))):
        if content:
            content[random.randrange(len(content))] = random.randrange(256)
    path.write_bytes(content)


def _insert_bytes(path: Path, random: Random) -> None:
    content, place = path.read_bytes(), random.randrange(len(path.read_bytes()) + 1)
    path.write_bytes(content[:place] + random.choice(BYTE_SEQUENCES) + content[place:])


def _repeat_bytes(path: Path, random: Random) -> None:
    content = path.read_bytes()
    start, end = sorted((random.randrange(len(content) + 1), random.randrange(len(content) + 1)))
    path.write_bytes(content[:end] + content[start:end] * random.choice((1, 3)) + content[end:])


def _empty(path: Path, random: Random) -> None:
    path.write_bytes(b"")


def _byte_order_mark(path: Path, random: Random) -> None:
    path.write_bytes(random.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")) + path.read_bytes())


def _swap_lines(path: Path, random: Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    random.shuffle(lines)
    path.write_bytes(b"".join(lines))


def _drop_line(path: Path, random: Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    place = random.randrange(len(lines) or 1)
    path.write_bytes(b"".join([*lines[:place], *lines[place + 1 :]]))


def _duplicate_line(path: Path, random: Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    place = random.randrange(len(lines) or 1)
    path.write_bytes(b"".join([*lines[:place], *lines[place : place + 1], *lines[place:]]))


def _encode_again(path: Path, random: Random) -> None:
    encoding = random.choice(("utf-16", "utf-32", "utf-7"))
    path.write_bytes(path.read_bytes().decode("latin-1").encode(encoding))


def _remove(path: Path, random: Random) -> None:
    path.unlink()


def _make_directory(path: Path, random: Random) -> None:
    path.unlink()
    path.mkdir()


def _make_fifo(path: Path, random: Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _make_endless(path: Path, random: Random) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _compress(path: Path, random: Random) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


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


def _replace_value(path: Path, random: Random) -> None:
    def replace(container: Any, key: Any, random: Random) -> None:
        container[key] = random.choice(EXTREME_VALUES)

    _change_values(replace, path, random)


def _remove_key(path: Path, random: Random) -> None:
    def remove(container: Any, key: Any, random: Random) -> None:
        del container[key]

    _change_values(remove, path, random)


def _add_key(path: Path, random: Random) -> None:
    def add(container: Any, key: Any, random: Random) -> None:
        if isinstance(container, list):
            cast(list[Any], container).insert(key, random.choice(EXTREME_VALUES))
        else:
            container[random.choice(("extra", "", "kind", "a" * 500))] = random.choice(EXTREME_VALUES)

    _change_values(add, path, random)


def _nest(path: Path, random: Random) -> None:
    def nest(container: Any, key: Any, random: Random) -> None:
        for _ in range(random.choice((1, 200))):
            container[key] = [container[key]]

    _change_values(nest, path, random)


def _change_tensors(change: Callable[[dict[str, Tensor], str, Random], None], path: Path, random: Random) -> None:
    tensors = load_file(path)
    if tensors:
        change(tensors, random.choice(sorted(tensors)), random)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def _drop_tensor(path: Path, random: Random) -> None:
    def drop(tensors: dict[str, Tensor], name: str, random: Random) -> None:
        del tensors[name]

    _change_tensors(drop, path, random)


def _change_dtype(path: Path, random: Random) -> None:
    def change(tensors: dict[str, Tensor], name: str, random: Random) -> None:
        tensors[name] = tensors[name].to(random.choice(DTYPES))

    _change_tensors(change, path, random)


def _change_shape(path: Path, random: Random) -> None:
    def change(tensors: dict[str, Tensor], name: str, random: Random) -> None:
        tensor = tensors[name]
        shapes = (tensor.flatten(), tensor[None], tensor.mT if tensor.ndim > 1 else tensor[:0], tensor.flatten()[:-1])
        tensors[name] = random.choice(shapes).clone()

    _change_tensors(change, path, random)


def _set_element(path: Path, random: Random) -> None:
    """Set one element: to a value that is not finite, or that is negative, or that is too large for an index."""

    def change(tensors: dict[str, Tensor], name: str, random: Random) -> None:
        flat = tensors[name].flatten()
        if not len(flat):
            return
        if flat.is_floating_point():
            flat[random.randrange(len(flat))] = random.choice((float("nan"), float("inf"), float("-inf"), -1e30))
        elif flat.dtype != torch.bool:
            flat[random.randrange(len(flat))] = random.choice((-1, 100, -100))
        tensors[name] = flat.reshape(tensors[name].shape)

    _change_tensors(change, path, random)


def _fill_tensor(path: Path, random: Random) -> None:
    def change(tensors: dict[str, Tensor], name: str, random: Random) -> None:
        value = float("nan") if tensors[name].is_floating_point() else 77
        tensors[name] = torch.full_like(tensors[name], value)

    _change_tensors(change, path, random)


def _change_header(path: Path, random: Random) -> None:
    """Change the length of the header, or a number or a name in it."""
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    if random.random() < 0.3:
        content[:8] = random.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little")
    else:
        place = 8 + random.randrange(max(1, length))
        content[place : place + 1] = random.choice((b"0", b"9", b"F", b'"', b",", b"}", b"-"))
    path.write_bytes(content)


def _replace_number(path: Path, random: Random) -> None:
    """Replace one run of digits of a text by an extreme number."""
    content = path.read_bytes()
    digits = [place for place, byte in enumerate(content) if 48 <= byte <= 57]
    if digits:
        place = random.choice(digits)
        number = random.choice((b"nan", b"inf", b"-1", b"1e999", b"9" * 40, b"", b"x", b"0", b"1000000000000"))
        path.write_bytes(content[:place] + number + content[place + 1 :])


def copy_folder(source: Path, target: Path) -> None:
    """Copy the whole artefact at ``source`` to ``target``, which is replaced."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
