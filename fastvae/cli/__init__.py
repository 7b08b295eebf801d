"""The command line: ``fastvae train``, ``sample``, ``encode``, ``evaluate``, ``pack``, ``experiment`` and ``info``.

Every mistake of a user gives one line on stderr and a non-zero exit status. Drawing, data and logging libraries are
loaded only where they are needed, so that ``--help`` and errors appear at once.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import fastvae
from fastvae.cli.streams import lasting_streams
from fastvae.machine import facts

_INSTALL = 'pip install "fastvae-torch[train]"'  # quoted, as some shells want it

try:
    import typer

    from fastvae.cli.encode import encode_command
    from fastvae.cli.evaluate import evaluate_command
    from fastvae.cli.experiment import experiment_command
    from fastvae.cli.pack import pack_command
    from fastvae.cli.sample import sample_command
    from fastvae.cli.train import InterruptedRunError, train_command
    from fastvae.training import StoppedError, TrainingError
except ModuleNotFoundError as missing:
    sys.exit(f"fastvae: error: {missing.name} is not installed: {_INSTALL}")

_INTERRUPTED = 130
_TERMINATED = 143  # what a shell, and so a scheduler, takes for SIGTERM


def info_command() -> None:
    """Print what this installation of fastvae was built for and what it runs on, for a bug report."""
    info = {**fastvae.build_info(), **facts()}
    width = max(map(len, info))
    for key, value in info.items():
        shown = ", ".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else value
        print(f"{key:<{width}}  {shown}")


app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, evaluate and draw from variational auto-encoders.",
)
# Each command with what its help shows at the end. A longer line than 76 would be broken in a terminal of 80 columns.
for name, command, examples in (
    (
        "train",
        train_command,
        (
            "fastvae train --dataset mnist --out runs/mnist",
            "fastvae train --data photos.npy --network conv --out runs/photos",
            "fastvae train --config runs/mnist/config.toml --seed 1 --out runs/again",
            "fastvae train --resume --epochs 200 --out runs/mnist",
            "torchrun --nproc-per-node 2 -m fastvae train --out runs/two-processes",
        ),
    ),
    (
        "sample",
        sample_command,
        (
            "fastvae sample runs/mnist --num 64 --out digits.png",
            "fastvae sample runs/cvae --label 3 --seed 1",
            "fastvae sample runs/mnist --traverse 8 --out dimensions.png",
        ),
    ),
    (
        "encode",
        encode_command,
        (
            "fastvae encode runs/mnist --out codes.npz --plot codes.png",
            "fastvae encode runs/table --data new-rows.parquet --out scores.parquet",
        ),
    ),
    (
        "evaluate",
        evaluate_command,
        (
            "fastvae evaluate runs/mnist",
            "fastvae evaluate runs/mnist --samples 5000 --partial samples.part",
            "fastvae evaluate runs/mnist --dataset fashion-mnist --json other.json",
        ),
    ),
    (
        "pack",
        pack_command,
        (
            "fastvae pack photos/ photos.npy --size 64",
            "fastvae pack list.txt faces.npy --size 64x48 --channels grey --fit pad",
        ),
    ),
    (
        "experiment",
        experiment_command,
        (
            "fastvae experiment list",
            "fastvae experiment mnist-cvae --quick",
            "fastvae experiment mnist-vae --data-dir data --out figures/mnist",
        ),
    ),
    ("info", info_command, ("fastvae info", "fastvae info | grep cpu")),
):
    app.command(name, epilog="\n  ".join(("Examples:", *examples)))(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: the arguments without the program's name; by default those of the process.

    Returns:
        The exit status: 0 for success, 1 for an error, 2 for wrong options, 130 after an interrupt, 143 after SIGTERM.
        A training whose pictures cannot be drawn gives a warning and 0. A command whose output nobody reads gives 0
        (:func:`fastvae.cli.streams.lasting_streams`).
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
        # torch has no type of its own for memory that is not to be had on the CPU, nor always for that of a GPU.
        told = "allocate memory" in str(error) or "out of memory" in str(error)
        if isinstance(error, RuntimeError) and not told:
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
