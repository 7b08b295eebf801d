"""The command line: ``fastvae train``, ``sample``, ``evaluate``, ``experiment`` and ``info``.

Whatever a user can get wrong ends in one line on stderr and a non-zero exit. Drawing, data and logging
libraries are loaded by what needs them, so that ``--help`` and errors come at once.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import fastvae
from fastvae.cli.streams import lasting_streams

_INSTALL = 'pip install "fastvae-torch[train]"'  # quoted, as some shells want it

try:
    import typer

    from fastvae.cli.evaluate import evaluate_command, sample_command
    from fastvae.cli.experiment import experiment_command
    from fastvae.cli.train import InterruptedRunError, train_command
    from fastvae.training import StoppedError, TrainingError
except ModuleNotFoundError as missing:
    sys.exit(f"fastvae: error: {missing.name} is not installed: {_INSTALL}")

_INTERRUPTED = 130
_TERMINATED = 143  # what a shell, and so a scheduler, takes for SIGTERM


def info_command() -> None:
    """Print what this installation was built for and runs on."""
    info = fastvae.build_info()
    width = max(map(len, info))
    for key, value in info.items():
        shown = ", ".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else value
        print(f"{key:<{width}}  {shown}")


app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, evaluate and draw from variational auto-encoders.",
)
for name, command in (
    ("train", train_command),
    ("sample", sample_command),
    ("evaluate", evaluate_command),
    ("experiment", experiment_command),
    ("info", info_command),
):
    app.command(name)(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; by default the process's own.

    Returns:
        The exit status: 0, 1 for what could not be done, 2 for wrong options, 130 after an interrupt, 143 after
        SIGTERM. A training whose pictures could not be drawn is done: that is a warning and 0. So is a command whose
        output nobody reads (:func:`fastvae.cli.streams.lasting_streams`).
    """
    with lasting_streams() as lost, _log_in_lines():
        status = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        if lost:
            _complain(f"error: standard output: {lost[0].strerror}")
            status = status or 1
    return status


def _run(arguments: Sequence[str]) -> int:
    try:
        # Not standalone: typer would draw a box of several lines around an error.
        status = app(list(arguments) or ["--help"], prog_name="fastvae", standalone_mode=False)
        if status == _INTERRUPTED:  # typer has caught the interrupt
            raise KeyboardInterrupt
        return status if isinstance(status, int) else 0
    except typer.TyperException as error:
        _complain(f"error: {error.format_message()}")
        return error.exit_code
    except ModuleNotFoundError as error:
        _complain(f"error: {error.name} is not installed: {_INSTALL}")
    except ImportError as error:
        _complain(f"error: {error}")
    except OSError as error:
        detail = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error
        _complain(f"error: {detail}")
    except StoppedError as stopped:
        _complain(str(stopped))
        return _TERMINATED
    except (ValueError, TrainingError) as error:
        _complain(f"error: {error}")
    except (MemoryError, RuntimeError) as error:
        # torch has no type of its own for memory that is not to be had on the CPU.
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        _complain("error: out of memory: try a smaller batch, model or number of images")
    except (InterruptedRunError, KeyboardInterrupt) as interrupt:
        _complain(f"interrupted{interrupt}")
        return _INTERRUPTED
    return 1


class _Lines(logging.Handler):
    """Shows what the package logs, a line each, and each once: a damaged checkpoint is met at every look for one."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message in self._said:
            return
        self._said.add(message)
        if record.levelno < logging.WARNING:
            print(message, flush=True)
        else:
            _complain(f"{record.levelname.lower()}: {message}")


@contextmanager
def _log_in_lines() -> Iterator[None]:
    logger, lines = logging.getLogger("fastvae"), _Lines()
    logger.addHandler(lines)
    try:
        yield
    finally:
        logger.removeHandler(lines)


def _complain(message: str) -> None:
    print("fastvae:", *(line.strip() for line in message.splitlines()), file=sys.stderr)
