"""Mutations: random damage to one file of an artefact, the same for the same seed.

Damage has four ways: the bytes of a file; the values of JSON and YAML; the tensors of safetensors; and the file itself,
which becomes a directory, a FIFO, a socket, a link to an endless device or to itself, another file of the artefact, or
nothing. Sometimes two files are damaged.
"""

from __future__ import annotations

import gzip
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import TypeAlias

from tests.faults.value_mutations import OF_TENSORS, OF_VALUES

Mutation: TypeAlias = Callable[[Path, Random], None]

SHARES = {"bytes": 3, "text": 2, "values": 6, "file": 1}
"""How often each way of damage is chosen; files without values (pictures) have their bytes damaged instead."""

SECOND_DAMAGE = 0.15
"""How often a second file, or the same one again, is damaged too."""

BYTE_SEQUENCES = (b"", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r", b"\x1f\x8b", b"NaN", b"1e999", b"-", b'"', b"{" * 3000)
BYTE_SEQUENCES = (*BYTE_SEQUENCES, b"9" * 5000, b"\xed\xa0\x80", b"&a ", b"*a ", b"!!python/object:os.system ")


def mutate(folder: Path, random: Random) -> str:
    """Damage one or two files below ``folder``, and return what was done to them."""
    damage = _mutate_one(folder, random)
    while random.random() < SECOND_DAMAGE and _files(folder):
        # The first damage may have made a file unreadable for the second one.
        with suppress(Exception):
            damage += f" and {_mutate_one(folder, random)}"
    return damage


def _mutate_one(folder: Path, random: Random) -> str:
    path = random.choice(_files(folder))
    way = random.choices(list(SHARES), list(SHARES.values()))[0]
    mutations: dict[str, tuple[Mutation, ...]] = {
        "bytes": (_cut, _overwrite_bytes, _insert_bytes, _repeat_bytes, _empty),
        "text": (_byte_order_mark, _swap_lines, _drop_line, _duplicate_line, _encode_again),
        "values": _value_mutations(path),
        "file": (*_FILE_MUTATIONS, _swap_files),
    }
    mutation = random.choice(mutations[way])
    mutation(path, random)
    return f"{mutation.__name__.strip('_')} of {path.relative_to(folder)}"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _value_mutations(path: Path) -> tuple[Mutation, ...]:
    match path.suffix:
        case ".json" | ".yaml" | ".gz":
            return OF_VALUES
        case ".safetensors":
            return OF_TENSORS
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


def _make_socket(path: Path, random: Random) -> None:
    path.unlink()
    os.mknod(path, stat.S_IFSOCK | 0o600)


def _make_loop(path: Path, random: Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _link_to_former_name(path: Path, random: Random) -> None:
    """Move a file to the name under which an interrupted save leaves it, with or without a link to it."""
    former = path.with_name(f".old-{path.name}")
    path.rename(former)
    if random.random() < 0.5:
        path.symlink_to(former.name)


def _make_unreadable_name(path: Path, random: Random) -> None:
    path.rename(path.with_name(random.choice(("\udcff", "a\nb", " ", "x" * 250, f"{path.name} ", path.name.upper()))))


def _swap_files(path: Path, random: Random) -> None:
    """Exchange the contents of two files, or replace a file by another one if there is only one."""
    others = sorted(other for other in path.parent.iterdir() if other.is_file() and other != path)
    if others:
        other = random.choice(others)
        first, second = path.read_bytes(), other.read_bytes()
        path.write_bytes(second)
        other.write_bytes(first)


def _compress(path: Path, random: Random) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


_FILE_MUTATIONS = (_remove, _make_directory, _make_fifo, _make_endless, _make_socket, _make_loop, _compress)
_FILE_MUTATIONS = (*_FILE_MUTATIONS, _link_to_former_name, _make_unreadable_name)


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
