"""What README and docs print: commands as the command line takes them, numbers as the code gives them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from dualclickmed.cli import app as cli

from tests.support.scripts import ROOT, script

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
            block = script("scripts/docs_figures.py").block_of(page.read_text(), name)
            # A table without rows ends with the line below its head.
            assert block and not re.search(r"^\| ---.*\Z", block, flags=re.M), (
                f"{page.name}: make docs-figures fills '{name}'"
            )


def test_readmes_numbers_of_the_sample_are_todays() -> None:
    module, text = script("scripts/docs_figures.py"), (ROOT / "README.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in module.block_of(text, "sample").splitlines()[2:]
    ]
    assert [organ for organ, *_ in rows] == [*module.SHOWN, "mean"]
    shown = np.array([[float(value) for value in values] for _, *values in rows])
    for start, columns in (("box", slice(0, 4)), ("point", slice(4, 8))):
        found = module.sample_dice(start)
        today = np.array([[found[organ][at] for at in (0, 1, 3, 5)] for organ in module.SHOWN])
        np.testing.assert_allclose(shown[:-1, columns], today, atol=TOLERANCE, err_msg="make docs-figures")
        np.testing.assert_allclose(shown[-1, columns], today.mean(axis=0), atol=TOLERANCE)
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


def test_growth_is_told_by_volume_and_by_clicks() -> None:
    seconds = {"first_seconds": 0.5, "same_seconds": 0.2}
    volumes = [
        {"shape": shape, "expert": expert, **{key: value * factor for key, value in seconds.items()}}
        for shape, factor in (((8, 16, 24), 1.0), ((80, 16, 24), 1.1))
        for expert in ("global", "local")
    ]
    clicks = [
        {"expert": expert, "clicks": number, "more_seconds": number / 10}
        for expert in ("global", "local")
        for number in (1, 32)
    ]
    module = script("scripts/docs_figures.py")
    block = module.growth_block({"machine": "2 cores, 1 thread, here", "volumes": volumes, "clicks": clicks})
    assert "| 24 x 16 x 8 | 0.500 s | 0.200 s | 0.500 s | 0.200 s |" in block
    assert "| largest against smallest | 1.10 | 1.10 | 1.10 | 1.10 |" in block
    assert "After 1 to 32 clicks, one more takes the local expert 0.10 to 3.20 s." in block
    assert "processor time of one thread" in block


def test_harmful_clicks_are_those_after_which_dice_fell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("scripts/docs_figures.py")
    monkeypatch.setattr(module, "TABLE", tmp_path / "table.json")
    rows = ["group,case,method,label,voxels,step,dice"]
    for step, (one, other) in enumerate(((0.5, 0.6), (0.48, 0.7), (0.49, 0.695))):
        rows += [
            f"ct,a,fused,1,99,{step},{one}",
            f"ct,a,fused,2,99,{step},{other}",
            f"ct,a,fused,3,9,{step},0",
        ]
    (tmp_path / "results.csv").write_text("\n".join(rows) + "\n")
    module.keep(tmp_path / "results.csv")
    found = json.loads((tmp_path / "table.json").read_text())
    # Of four clicks on objects that count, one made its mask worse by more than 0.01.
    assert found["ct"]["harmful"] == [1, 0] and found["ct"]["objects"] == [2]
    assert "after 25.0% of the 4 clicks behind this table" in module.harmful_block(found)


def first_minute(**changed: float) -> dict[str, Any]:
    """What `make first-minute` writes."""
    names = ("size of .venv, GB", "a start: from 'make serve' to the line 'Ready', s")
    pages = ("from the address to the sample", "from the first click to the mask")
    figures = dict(zip([*names, *(f"page: {name}, s" for name in pages)], (1.5, 4.0, 3.0, 0.9), strict=True))
    figures |= {f"processor seconds of {name}, s": 0.1 for name in ("--help", "weights list")}
    return {"machine": "2 cores", "figures": figures | changed}


def test_readmes_first_minute_is_the_one_that_was_measured() -> None:
    module, text = script("scripts/docs_figures.py"), (ROOT / "README.md").read_text()
    measured = json.loads(module.FIRST_MINUTE.read_text())
    assert module.block_of(text, "first-minute") == module.first_minute_block(measured), "make docs-figures"


def test_the_first_minute_is_told_with_its_machine_and_units() -> None:
    module = script("scripts/docs_figures.py")
    block = module.first_minute_block(first_minute(**{"processor seconds of weights list, s": 0.25}))
    assert "on 2 cores" in block and "1.50 GB of disk" in block
    assert re.findall(r": ([\d. to]+ s)\b", block) == ["4.00 s", "3.00 s", "0.90 s", "0.10 to 0.25 s"]


def test_a_first_minute_without_installing_keeps_the_size_that_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("scripts/docs_figures.py")
    monkeypatch.setattr(module, "FIRST_MINUTE", tmp_path / "kept.json")
    later = first_minute(**{"processor seconds of --help, s": 0.2})
    later["figures"].pop("size of .venv, GB")
    for number, found in enumerate((first_minute(), later | {"machine": "4 cores"})):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(found))
        module.keep_first_minute(file)
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert kept["machine"] == "4 cores"
    assert kept["figures"]["size of .venv, GB"] == 1.5
    assert kept["figures"]["processor seconds of --help, s"] == 0.2
