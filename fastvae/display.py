"""Progress of the command line on a terminal."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

import rich.progress
from rich.console import Console
from rich.table import Column

from fastvae.training import Progress

_logger = logging.getLogger("fastvae")


@contextmanager
def progress_bar(name: str) -> Iterator[Callable[[int, int | None, str], None]]:
    """Shows a progress bar on a terminal. Yields a function of the amount done, the total and a text beside the bar."""
    console = Console(stderr=True, highlight=False)
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=None, table_column=Column(ratio=1)),
        rich.progress.TextColumn("{task.fields[state]}"),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(
        *columns, console=console, transient=True, expand=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(name, total=None, state="")
        yield lambda done, total, state: bar.update(task, completed=done, total=total, state=state)


class TrainingDisplay:
    """Shows a training: a live line on a terminal, and anywhere a permanent line for each epoch and log message.

    It remembers an interrupt, because Python drops a KeyboardInterrupt that is raised inside a finaliser.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._interrupted = False
        self._console = Console(highlight=False, soft_wrap=True, quiet=quiet)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=None, table_column=Column(ratio=1)),
            rich.progress.TextColumn("{task.fields[state]}"),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            transient=True,
            expand=True,
            disable=not self._console.is_terminal,
        )
        self._task: rich.progress.TaskID | None = None
        self._reading: dict[str, rich.progress.TaskID] = {}

    def __enter__(self) -> TrainingDisplay:
        self._previous_handler = signal.signal(signal.SIGINT, self._interrupt)
        self._previous_level = _logger.level
        if not self._console.quiet:
            _logger.setLevel(logging.INFO)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGINT, self._previous_handler)
        _logger.setLevel(self._previous_level)
        self._bar.stop()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True
        raise KeyboardInterrupt

    def read(self, what: str, done: int, total: int) -> None:
        """Shows the progress of work before the first step."""
        if self._interrupted:
            raise KeyboardInterrupt
        if what not in self._reading:
            self._reading[what] = self._bar.add_task(what, state="")
            self._bar.start()
        self._bar.update(self._reading[what], completed=done, total=total)

    def show(self, progress: Progress) -> None:
        """Shows the progress of the training."""
        if self._interrupted:
            raise KeyboardInterrupt
        epoch = f"{progress.epoch}/{progress.epochs}"
        rate = f"{progress.samples_per_second:,.0f} samples/s"
        parts = f"reconstruction {progress.reconstruction:.2f}  KL {progress.kl:.2f}"
        if self._task is None:
            # The bar starts with the first step: until then a download may draw its own.
            total = progress.epochs * progress.images_per_epoch
            for task in self._reading.values():
                self._bar.remove_task(task)
            self._task = self._bar.add_task("", total=total, state="")
            self._bar.start()
        done = (progress.epoch - 1) * progress.images_per_epoch + progress.images
        state = f"loss {progress.loss:.2f}  {parts}  {rate}"
        self._bar.update(self._task, completed=done, description=f"epoch {epoch}", state=state)
        if progress.test is not None:
            test = progress.test
            self._console.print(
                f"epoch {epoch}  loss {progress.loss:.2f}  {parts}  test ELBO {test.elbo:.2f} nats  {rate}"
            )
