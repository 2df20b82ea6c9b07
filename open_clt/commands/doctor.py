"""The command ``open-clt doctor``: whether this installation works, and what to do if it does not.

It lists versions, devices, memory and extras, asks whether the hub answers, and computes a small attribution graph with
the embedded model. With ``--json`` it prints the same as JSON. The exit status is 1 if something must be repaired.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Literal, NamedTuple

from open_clt.commands.options import AddParser, add_command
from open_clt.errors import OpenCLTError, one_line

State = Literal["ok", "note", "problem"]
_PROMPT, _ANSWER = "The capital of the state containing Dallas is", " Austin"
_COMPLETE = 1e-5
"""Largest share of a row that rounding may leave out of a complete graph."""
_SMALL = 2 * 2**30
"""Bytes of memory below which GPT-2 small and a transcoder of it do not fit (2 GiB)."""
_OFFLINE = "HF_HUB_OFFLINE"
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*([^;]*)(?:;(.*))?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w-]+)['\"]")
_NOT_SHOWN = ("dev", "docs", "benchmarks")
"""Extras for work on OpenCLT itself."""


class Finding(NamedTuple):
    """One line of the report."""

    subject: str
    state: State
    says: str
    """What was found."""
    advice: str = ""
    """What to do; empty if there is nothing to do."""


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    parser = add_command(add_parser, "doctor", "Check this installation, and say what to do if something is missing.")
    parser.add_argument("--json", action="store_true", help="Print the findings as JSON.")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; return 1 if one of them is a problem."""
    found: list[Finding] = []
    for finding in findings():
        found.append(finding)
        if not arguments.json:
            print(f"{finding.state:8} {finding.subject:12} {finding.says}", flush=True)
            if finding.advice:
                print(f"{'':8} {'':12} -> {finding.advice}")
    problems = sum(finding.state == "problem" for finding in found)
    if arguments.json:
        print(json.dumps({"ok": not problems, "findings": [finding._asdict() for finding in found]}, indent=2))
    else:
        print("Everything that OpenCLT needs works." if not problems else f"{problems} to repair, marked as problem.")
    return int(problems > 0)


def findings() -> Iterator[Finding]:
    """Yield the findings, from the fastest to the slowest."""
    yield Finding("system", "ok", f"OpenCLT {version('open-clt')}, Python {platform.python_version()} on {_system()}")
    yield from _packages()
    yield from _devices()
    yield _memory()
    yield _hub()
    yield _self_test()


def _system() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def _packages() -> Iterator[Finding]:
    """The packages that OpenCLT requires, and those of its extras."""
    from packaging.specifiers import SpecifierSet

    extras: dict[str, list[str]] = {}
    installed: list[str] = []
    wrong: list[str] = []
    for name, versions, extra in _requirements():
        try:
            present = version(name)
        except PackageNotFoundError:
            (wrong.append(f"{name} is missing") if extra is None else extras.setdefault(extra, []).append(name))
            continue
        if not SpecifierSet(versions).contains(present, prereleases=True):
            wrong.append(f"{name} is {present}, but OpenCLT needs {versions}")
        elif extra is None:
            installed.append(f"{name} {present}")
        else:
            extras.setdefault(extra, [])
    yield Finding("packages", "ok", ", ".join(installed))
    for sentence in wrong:
        yield Finding("packages", "problem", sentence, "pip install --upgrade open-clt")
    for extra, missing in sorted(extras.items()):
        if extra not in _NOT_SHOWN:
            says = f"{extra}: {', '.join(missing)} not installed" if missing else f"{extra}: installed"
            advice = f"if you need it: pip install 'open-clt[{extra}]'" if missing else ""
            yield Finding("extras", "note" if missing else "ok", says, advice)


def _requirements() -> Iterator[tuple[str, str, str | None]]:
    """Yield the name, the legal versions and the extra of each requirement of the installed package."""
    for line in requires("open-clt") or ():
        match = _REQUIREMENT.fullmatch(line.strip())
        if match is not None:
            extra = _EXTRA.search(match[3] or "")
            yield match[1], match[2].strip().strip("()"), extra and extra[1]


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding("device", "ok", f"cpu, {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        says = f"cuda:{index}, {torch.cuda.get_device_name(index)}, {_size(free)} of {_size(total)} free"
        yield Finding("device", "ok", says)
    if torch.backends.mps.is_available():
        yield Finding("device", "ok", "mps")
    if torch.version.cuda and not torch.cuda.is_available():
        advice = "if there is a GPU, look at nvidia-smi; its driver may be older than this torch"
        yield Finding("device", "note", f"torch is built for CUDA {torch.version.cuda}, but finds no GPU", advice)


def _memory() -> Finding:
    from open_clt.memory import available_memory

    available = available_memory()
    if available is None:
        return Finding("memory", "note", "the system does not say how much memory is available")
    if available < _SMALL:
        advice = "use small models, or give this machine or container more memory"
        return Finding("memory", "note", f"{_size(available)} available", advice)
    return Finding("memory", "ok", f"{_size(available)} available")


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _hub() -> Finding:
    from huggingface_hub import constants

    from open_clt.hub.reachable import answers

    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "note", f"{_OFFLINE} is set, so only models on this machine are found")
    if answers(constants.ENDPOINT):
        return Finding("hub", "ok", f"{constants.ENDPOINT} answers")
    advice = "models on this machine and 'embedded' work; for others, check the network or the proxy"
    return Finding("hub", "note", f"{constants.ENDPOINT} does not answer", advice)


def _self_test() -> Finding:
    """Explain a prompt with the embedded model, and compare with what is known of it."""
    from open_clt.attribution.attribute import attribute
    from open_clt.lean_imports import lean_imports
    from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder

    advice = "run `open-clt attribute --prompt 'The capital of Texas is'`, and report what it prints as an issue"
    try:
        with lean_imports():
            clt = OpenCrossLayerTranscoder.from_pretrained("embedded")
        graph = attribute(clt.language_model, clt.transcoder, _PROMPT)
    except OpenCLTError as error:
        return Finding("self-test", "problem", str(error), advice)
    except Exception as error:  # noqa: BLE001  (whatever is broken here is what the command is for)
        return Finding("self-test", "problem", one_line(f"{type(error).__name__}: {error}"), advice)
    output, missing = graph.node(graph.n_nodes - 1).label, graph.check().relative_to_row
    if _ANSWER not in output or missing > _COMPLETE:
        return Finding("self-test", "problem", f"{output}; {missing:.1e} of a row of the graph is missing", advice)
    return Finding("self-test", "ok", f"the embedded model is explained: {output}, {missing:.1e} of a row is missing")
