"""Every option's help says what holds without it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer
from dualclickmed.cli import app as cli
from typer.testing import CliRunner


def options(group: Any, context: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every option of every command that may be left out: the command's words, and the option."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        command = command.real() if hasattr(command, "real") else command
        if hasattr(command, "list_commands"):
            inner = command.make_context(name, [], resilient_parsing=True)
            yield from options(command, inner, (*path, name))
            continue
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.required:
                yield " ".join((*path, name)), parameter


def found() -> list[tuple[str, str, Any]]:
    group = typer.main.get_command(cli.app)
    context = group.make_context("dualclickmed", ["--help"], resilient_parsing=True)
    return [(name, option.opts[0], option) for name, option in options(group, context)]


@pytest.mark.parametrize(("command", "name", "option"), found())
def test_an_option_tells_its_default(command: str, name: str, option: Any) -> None:
    shown = option.show_default and option.default not in (None, ())
    # A switch without a counterpart is off unless given.
    switch = option.is_flag and not option.secondary_opts
    assert shown or switch or "default" in (option.help or ""), f"{command} {name}: what holds without it?"


def test_serve_shows_every_option_with_its_default() -> None:
    text = CliRunner().invoke(cli.app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    lines = {line.split()[1]: line for line in text.splitlines() if line.startswith(("│    --", "│ *  --"))}
    lines = {word if word.startswith("--") else line.split()[2]: line for word, line in lines.items()}
    names = {"host", "port", "labels", "device", "strategy", "model-dir", "preset", "conf"}
    assert set(lines) == {f"--{name}" for name in names | {"studies", "help"}}
    for name in names:
        assert "default" in lines[f"--{name}"], name
