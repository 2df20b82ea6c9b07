"""The progress bar of commands that write datasets: tokens, time left, tokens per second and bytes."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol


class ShowTokens(Protocol):
    """A function that shows how many tokens are done, and of how many."""

    def __call__(self, done: int, total: int) -> None: ...


@contextmanager
def token_progress(name: str, bytes_per_token: int, *, shown: bool = True) -> Generator[ShowTokens]:
    """Show a bar, and give a function of the number of tokens that are done and of the number of all tokens."""
    from rich.progress import TextColumn

    from open_clt.progress import progress_bar
    from open_clt.transcoders.formats.info import readable

    with progress_bar(name, TextColumn("{task.fields[speed]}"), shown=shown) as bar:
        task, started, first = bar.add_task(name, total=None, speed=""), time.perf_counter(), None

        def show(done: int, total: int) -> None:
            nonlocal first
            first = done if first is None else first
            speed = (done - first) / (time.perf_counter() - started)
            text = f"{speed:,.0f} tokens/s, {readable(done * bytes_per_token)}"
            bar.update(task, completed=done, total=total, speed=text)

        yield show
