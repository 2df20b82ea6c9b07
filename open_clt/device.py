"""Devices: the one place that turns the name of a device into a device of PyTorch."""

from __future__ import annotations

import torch

from open_clt.errors import ConfigError, short_value


def check_device(device: str | torch.device) -> torch.device:
    """Return the device with this name; raises ConfigError if PyTorch does not have it."""
    try:
        checked = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"device is {short_value(device)}, which PyTorch does not know; use 'cpu' or 'cuda'."
        ) from error
    if checked.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {str(device)!r}, but PyTorch finds no CUDA device; use 'cpu'.")
    return checked
