"""The configuration of a run as a TOML file, written by a user for a run, or by a run so that it can be repeated."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

import fastvae
from fastvae.files import replacing
from fastvae.training.config import PATHS, TrainConfig

CONFIG = "config.toml"

_CALLED = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of :class:`TrainConfig` that a TOML file gives: ``TrainConfig(**read_config("run.toml"))``.

    Args:
        path: a file of ``field = value`` lines. ``batch-size`` is ``batch_size``, as on the command line. Relative
            paths in it start from the file's own folder.

    Raises:
        ValueError: the file is not TOML, a key is unknown or given twice, or a value has another type than the field;
            the message names the file and the line or key.
        OSError: the file cannot be read.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    content = Path(path).read_bytes()
    try:
        # A last line that does not end has no number in the parser's messages.
        table = tomllib.loads(content.decode() + "\n")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a TOML file: {error}") from None
    hints = get_type_hints(TrainConfig)
    fields: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            raise ValueError(f"{path}: unknown key {key!r}" + (f"; did you mean {near[0]}?" if near else ""))
        if name in fields:
            raise ValueError(f"{path}: {name} is given twice, with a dash and with an underscore")
        try:
            fields[name] = _converted(value, hints[name])
        except TypeError as error:
            raise ValueError(f"{path}: {key} must be {error}") from None
    return with_absolute_paths(fields, Path(path).parent.absolute())


def _converted(value: Any, hint: Any) -> Any:
    """A value of TOML as one of a field's type; raises TypeError with what was expected and what was found."""
    if type(None) in get_args(hint):
        (hint,) = (kind for kind in get_args(hint) if kind is not type(None))
    found = _CALLED.get(type(value), "a date or time")
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise TypeError(f"one of {', '.join(get_args(hint))}, not {repr(value) if type(value) is str else found}")
        return value
    if get_origin(hint) is tuple:
        if type(value) is not list or any(type(item) is not int for item in value):
            raise TypeError("a list of integers, not " + ("one of other values" if type(value) is list else found))
        return tuple(value)
    if hint is float and type(value) is int:
        with suppress(OverflowError):
            value = float(value)
    # Not isinstance: true is no integer here.
    if type(value) is not hint:
        raise TypeError(f"{_CALLED[hint]}, not {found}")
    return value


def with_absolute_paths(fields: Mapping[str, Any], folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Fields of a configuration with absolute paths; relative ones start from ``folder``, or from ``~``."""
    return {
        name: str(Path(folder, os.path.expanduser(value))) if name in PATHS and value is not None else value
        for name, value in fields.items()
    }


def config_text(config: TrainConfig, notes: Iterable[str] = ()) -> str:
    """A configuration in TOML, from which :func:`read_config` reads the same fields.

    Fields that are None are left out, because TOML has no such value. A path that is not Unicode is only a comment,
    because TOML is Unicode.

    Args:
        config: the configuration, whose relative paths start from the working directory.
        notes: lines of comment about what the file does not hold.
    """
    lines = [
        f"# Written by fastvae {fastvae.__version__} with torch {torch.__version__}.",
        "# To repeat the run: fastvae train --config THIS-FILE --out NEW-FOLDER",
        *(f"# {note}" for note in notes),
        "",
    ]
    for name, value in _fields(config).items():
        if value is None:
            continue
        # Strings, exact numbers and lists in JSON are the same in TOML, but for one character.
        line = f"{name} = " + json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        try:
            line.encode()
        except UnicodeEncodeError:
            line = f"# {name} is not Unicode: {json.dumps(value)}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def keep_config(config: TrainConfig, out_dir: Path, notes: Iterable[str] = (), *, data_given: bool = False) -> None:
    """Writes ``config.toml`` into the folder of a run, complete or not at all.

    An existing file with the same values is kept, with a user's comments. One with other values is replaced.

    Args:
        config: the configuration with its likelihood (:meth:`TrainConfig.resolved`).
        out_dir: folder of the run.
        notes: as for :func:`config_text`.
        data_given: whether a program gave the data of the run.

    Raises:
        ValueError: a file of that name exists that is no configuration, and is therefore not replaced.
        OSError: the file cannot be read or written.
    """
    path = out_dir / CONFIG
    if path.exists():
        given = read_config(path)
        with suppress(ValueError):  # which is of other values than the run's
            if _fields(TrainConfig(**given).resolved(data_given)) == _fields(config):
                return
    with replacing(path) as temporary:
        temporary.write_text(config_text(config, notes), encoding="utf-8")


def _fields(config: TrainConfig) -> dict[str, Any]:
    return with_absolute_paths(dataclasses.asdict(config), Path.cwd())
