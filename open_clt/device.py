"""Devices: the one place that turns the name of a device into a device of PyTorch."""

from __future__ import annotations

import torch

from open_clt.errors import ConfigError, short_value

_LEGAL = "use 'cpu', 'cuda' (one GPU of several: 'cuda:1'), 'mps', or 'auto' for the first of cuda, mps and cpu"


def check_device(device: str | torch.device) -> torch.device:
    """Return the device with this name, where ``"auto"`` is the first of cuda, mps and cpu that exists.

    Raises ConfigError if PyTorch does not have the device.
    """
    if device == "auto":
        return torch.device("cuda" if _count("cuda") else "mps" if _count("mps") else "cpu")
    try:
        checked = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device is {short_value(device)}, which PyTorch does not know; {_LEGAL}.") from error
    if checked.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device is {str(device)!r}, which OpenCLT does not support; {_LEGAL}.")
    if (checked.index or 0) >= (count := _count(checked.type)):
        kind = {"cuda": "CUDA device", "mps": "GPU of Apple (mps)"}.get(checked.type, "CPU")
        found = f"only {count} {kind}s" if count > 1 else f"only one {kind}" if count else f"no {kind}"
        raise ConfigError(f"device is {str(device)!r}, but PyTorch finds {found}; use {'auto' if count else 'cpu'!r}.")
    return checked


def _count(kind: str) -> int:
    """The number of devices of a kind that this process can use."""
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    return int(kind == "cpu" or torch.backends.mps.is_available())
