"""Progress for people: a bar in a terminal, plain lines elsewhere, nothing when not asked for."""

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_INTERVAL_S = 15.0
Describe = Callable[[], str]


class Reporter:
    """Where stages say what they do; `Reporter(quiet=True)` says nothing (the default of the Python API)."""

    def __init__(self, *, quiet: bool = False) -> None:
        """Write to standard error, so that standard output stays for results."""
        # A message is shown as it is and stays one line: no `:smile:` becomes a picture, nothing is folded.
        self._console = Console(stderr=True, quiet=quiet, highlight=False, emoji=False, soft_wrap=True)
        self._quiet = quiet

    def say(self, message: str) -> None:
        """Print one line."""
        self._console.print(message, markup=False)

    def track(
        self,
        steps: Iterable[int],
        label: str,
        *,
        total: int,
        done: int = 0,
        describe: Describe | None = None,
    ) -> Iterator[int]:
        """Yield steps and show how far they are.

        Args:
            steps: what is left to do.
            label: what is being done.
            total: steps of the whole work, those done earlier included.
            done: steps done in an earlier run.
            describe: called after each step for a few words, such as the newest loss.
        """
        if self._quiet:
            yield from steps
        elif self._console.is_terminal:
            yield from self._bar(steps, label, total, done, describe)
        else:
            yield from self._lines(steps, label, total, done, describe)

    @contextlib.contextmanager
    def counting(self, label: str, what: str) -> Generator[Callable[[int], None]]:
        """Give a function to call with a count whose end is not known, and show it from time to time."""
        started = shown = time.monotonic()

        def tell(count: int) -> None:
            nonlocal shown
            now = time.monotonic()
            if not self._quiet and now - shown >= (1.0 if self._console.is_terminal else PLAIN_INTERVAL_S):
                self.say(f"{label}: {count} {what} after {now - started:.0f} s")
                shown = now

        yield tell

    def _bar(self, steps: Iterable[int], label: str, total: int, done: int, describe: Describe | None) -> Iterator[int]:
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(label, total=total, completed=done, note="")
            for step in steps:
                yield step
                progress.update(task, advance=1, note=describe() if describe else "")

    def _lines(
        self, steps: Iterable[int], label: str, total: int, done: int, describe: Describe | None
    ) -> Iterator[int]:
        started = shown = time.monotonic()
        for count, step in enumerate(steps, start=done + 1):
            yield step
            now = time.monotonic()
            if now - shown >= PLAIN_INTERVAL_S or count == total:
                note = f"  {describe()}" if describe else ""
                self.say(f"{label}: {count}/{total} after {now - started:.0f} s{note}")
                shown = now


QUIET = Reporter(quiet=True)
