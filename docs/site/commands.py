"""The help of each command of `fastvae`, as it is printed."""

from __future__ import annotations

from collections.abc import Iterator


def page() -> str:
    return "# The command line\n\n" + "\n\n".join(_commands()) + "\n"


def _commands() -> Iterator[str]:
    from typer.testing import CliRunner

    from fastvae.cli import app

    def help_of(*command: str) -> str:
        result = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"}).invoke(
            app, [*command, "--help"], prog_name="fastvae"
        )
        assert result.exit_code == 0, result.output
        return "```text\n" + "\n".join(line.rstrip() for line in result.output.strip().splitlines()) + "\n```"

    yield help_of()
    for info in app.registered_commands:
        assert info.name
        yield f"## fastvae {info.name}\n\n{help_of(info.name)}"
