"""What README and docs print: commands as the command line takes them, numbers as the code gives them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from dualclickmed.cli import app as cli

from tests.support.scripts import script

from .test_requirements import ROOT

PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
TOLERANCE = 0.02
"""Of a Dice: processors and libraries move it a little, and the page shows two digits."""
_OURS = (re.compile(r"main\.py (.*)"), re.compile(r"^dualclickmed ([a-z].*)"))


def fenced(page: Path) -> Iterator[str]:
    """The lines of a page's code blocks, with continued ones in one."""
    for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), flags=re.S | re.M):
        yield from re.sub(r"\\\n\s*", "", block).splitlines()


def printed() -> Iterator[tuple[str, str]]:
    """Every command of ours on a page, in a block or between backticks: page and arguments."""
    for page in PAGES:
        prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
        inline = re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", prose)
        for line in [*fenced(page), *(text.replace("\n", " ") for text in inline)]:
            found = next((found for form in _OURS if (found := form.search(line.strip()))), None)
            if found is not None and not line.strip().startswith(("#", "pip", "from")):
                # Behind two spaces or a sign stands what it is for.
                yield page.name, re.split(r"  +|\s[;|>&#]", found[1])[0]


COMMANDS = sorted(set(printed()))


def parsed(arguments: list[str]) -> None:
    """Parse as the command line does, without running anything."""
    group = typer.main.get_command(cli.app)
    context = group.make_context("dualclickmed", arguments)
    name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])  # type: ignore[attr-defined]
    while hasattr(command, "resolve_command"):
        context = command.make_context(name, rest, parent=context)
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    command.make_context(name, rest, parent=context)


def test_commands_are_found() -> None:
    assert len(COMMANDS) > 40


@pytest.mark.parametrize(("page", "text"), COMMANDS)
def test_a_printed_command_is_understood(page: str, text: str) -> None:
    # [--option], ... and N stand for what a user fills in.
    placeholders = re.search(r"\[|\.\.\.|\b[N]\b|\|| i/n", text) is not None
    options = re.findall(r"--[a-z][\w-]*", text)
    words = shlex.split(re.sub(r"[\[\]]", " ", text)) if placeholders else shlex.split(text)
    if not placeholders and "--help" not in words:
        try:
            parsed(words)
        except (typer.Exit, SystemExit):
            pytest.fail(f"{page}: {text}")
        except Exception as error:
            message = error.format_message() if hasattr(error, "format_message") else str(error)
            # What a page names without all that it needs is not meant to be typed as it stands.
            assert "Missing" in message, f"{page}: {text}: {message}"
        return
    known = help_of([word for word in words if re.fullmatch(r"[a-z][a-z-]+", word)][:2])
    for option in options:
        assert option in known, f"{page}: {text}: there is no {option}"


def help_of(names: list[str]) -> str:
    """The options of a command."""
    command: Any = typer.main.get_command(cli.app)
    context = command.make_context("dualclickmed", ["--help"], resilient_parsing=True)
    known = ["--help", "--version", "--verbose"]
    for name in names:
        if not hasattr(command, "get_command"):
            break
        command = command.get_command(context, name)
        assert command is not None, f"there is no command '{name}'"
        if hasattr(command, "real"):
            command = command.real()
    for parameter in command.params:
        known += [*parameter.opts, *parameter.secondary_opts]
    return " ".join(known)


def test_printed_targets_are_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), flags=re.M))
    for page in PAGES:
        text = page.read_text()
        for target in re.findall(r"`make ([a-z][\w-]*)", text) + re.findall(
            r"^make ([a-z][\w-]*)", text, flags=re.M
        ):
            assert target in targets, f"{page.name}: make {target}"


def test_monai_labels_own_command_takes_what_readme_gives_it() -> None:
    from monailabel.main import Main

    found = re.search(r"`monailabel (start_server[^`]*)`", (ROOT / "README.md").read_text())
    assert found is not None
    arguments = Main().args_parser().parse_args(found[1].split())
    assert arguments.app == "apps/dualclickmed"


def test_every_block_of_figures_is_filled() -> None:
    names = {name for page in PAGES for name in re.findall(r"<!-- figures: ([\w-]+) -->", page.read_text())}
    assert names >= {"sample", "example", "modalities"}
    for page in PAGES:
        for name in re.findall(r"<!-- figures: ([\w-]+) -->", page.read_text()):
            assert script("scripts/docs_figures.py").block_of(page.read_text(), name), (
                f"{page.name}: make docs-figures fills '{name}'"
            )


def test_readmes_numbers_of_the_sample_are_todays() -> None:
    module, text = script("scripts/docs_figures.py"), (ROOT / "README.md").read_text()
    found = module.sample_dice()
    rows = re.findall(
        r"^\| ([a-z ]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$",
        module.block_of(text, "sample"),
        flags=re.M,
    )
    assert [row[0] for row in rows] == list(module.SHOWN)
    for organ, *shown in rows:
        today = [found[organ][at] for at in (0, 1, 3, 5)]
        assert [float(s) for s in shown] == pytest.approx(today, abs=TOLERANCE), f"{organ}: make docs-figures"
    example = re.search(r"Dice of ([\d.]+)\.", module.block_of(text, "example"))
    assert example is not None
    assert float(example[1]) == pytest.approx(module.example(), abs=TOLERANCE), "make docs-figures"
    assert " ".join(module.EXAMPLE) in re.sub(r"\\\n\s*|--name liver ", "", text)


def test_readmes_first_screen_shows_it_and_says_how_to_start() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    picture = next(n for n, line in enumerate(lines) if line.startswith("!["))
    assert lines[0] == "# DualClickMed" and lines[2].endswith(".") and picture == 4
    moving = re.search(r"\((.*\.gif)\)", lines[picture])
    assert moving is not None and (ROOT / moving[1]).read_bytes()[:6] in (b"GIF87a", b"GIF89a")
    clone, serve = (
        next(n for n, line in enumerate(lines) if line.startswith(s)) for s in ("git clone", "make")
    )
    assert picture < clone < serve < 12 and "Ready: http" in " ".join(lines[serve : serve + 8])
