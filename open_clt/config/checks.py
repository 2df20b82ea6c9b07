"""Checks of values that the configs of several subjects share."""

from __future__ import annotations

from open_clt.errors import ConfigError


def check_counts(config: object, *names: str) -> None:
    """Raise ConfigError if one of these settings is not None and below 1."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1.")


def check_shares(config: object, *names: str) -> None:
    """Raise ConfigError if one of these settings is not None and lies outside ``0 <= value < 1``."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < 1:
            raise ConfigError(f"{name} is {value}; it is a share, so it must be at least 0 and below 1.")


def check_above_zero(config: object, *names: str) -> None:
    """Raise ConfigError if one of these settings is not None and not above 0."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise ConfigError(f"{name} is {value}; it must be above 0.")


def check_not_negative(config: object, *names: str) -> None:
    """Raise ConfigError if one of these settings is below 0."""
    for name in names:
        if getattr(config, name) < 0:
            raise ConfigError(f"{name} is {getattr(config, name)}; it must be at least 0.")


def check_seed(config: object) -> None:
    """Raise ConfigError if the seed does not fit every random generator that takes it."""
    seed = getattr(config, "seed")  # noqa: B009  (the config is of any class)
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed is {seed}; it must be at least 0 and below 2**32.")
