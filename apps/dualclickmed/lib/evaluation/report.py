"""Tables and figures of an evaluation, in the layout of the paper's Tables 3 and 4, as Markdown and HTML.

Every number comes from the rows of `records` through `statistics`; `results.csv` holds all of them.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..benchmarks.networks import NetworkRow as NetworkRow
from ..errors import UserError
from . import cost, figures, records
from .cases import Case
from .run import SETTINGS, SKIPPED, SLICES, shown_slice
from .statistics import Mean, Summary, summarise

SUMMARY, MARKDOWN, HTML, FIGURES = "summary.json", "report.md", "report.html", "figures"
CURVES = "dice.png"
SHOWN_NOTES = 40
"""Failures that are listed; all of them are in the CSV files."""
TITLES = {"ct": "CT", "mri": "MRI", "pet": "PET", "microscopy": "Microscopy", "ultrasound": "Ultrasound"}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #d9dde5; text-align: right; white-space: nowrap }
th { border-bottom: 2px solid #1d2330 }
td small { color: #667 }
img { max-width: 100% }
code { background: #f2f4f8; padding: 0 .25rem }
.l { text-align: left; white-space: normal; overflow-wrap: anywhere }
@media (prefers-color-scheme: dark) {
  body { background: #14171d; color: #dde2ea }
  td, th { border-color: #333a46 }
  code { background: #232935 }
  td small { color: #99a }
  img { background: white }
}
"""
_STARTS = {
    "box": "Box",
    "box2d": "Rectangle in one slice",
    "lasso": "Lasso in one slice",
    "scattered": "Clicks all over each object",
}


@dataclass(frozen=True)
class Origin:
    """Where the numbers come from: the command that was called, and the machine."""

    command: str
    machine: str


@dataclass(frozen=True)
class _Coverage:
    """How many cases were asked for, how many each method has done, and why others were left out."""

    asked: int
    done: dict[str, int]
    skipped: dict[str, str]


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, a table and pictures.

    Attributes:
        rows: cells as Markdown: ``**bold**``, code and ``<small>`` are all that is used.
        names: columns of words, which stand first; the others are numbers.
        pictures: files relative to the report, with captions.
    """

    title: str
    paragraphs: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    names: int = 2
    pictures: tuple[tuple[str, str], ...] = field(default=())


def write(
    out: Path,
    methods: Sequence[str],
    cases: Sequence[Case],
    origin: Origin,
    start: str,
    costs: Sequence[NetworkRow] = (),
    pictures: int = 0,
    load: Callable[[Case], Any] | None = None,
) -> list[Summary]:
    """Write the combined CSV, the summary and both reports of what a folder holds.

    Args:
        out: the folder of an evaluation.
        methods: which, in the order of the tables.
        cases: all that were asked for; those without scores are counted.
        origin: as the report states it.
        start: what the steps begin with.
        costs: of networks.
        pictures: best and worst cases of each group that are drawn; they show the images.
        load: a case's task, for pictures.

    Raises:
        UserError: there are no scores yet.
    """
    rows = records.read_all(out, methods)
    wanted = {case.name for case in cases}
    rows = [row for row in rows if row.case in wanted]
    if not rows:
        raise UserError(f"'{out}' holds no scores of these cases{_skipped_sentence(out)}.")
    records.write(out / records.COMBINED, rows)
    summaries = summarise(rows)
    facts = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    skipped = _skipped(out)
    figures.curves(out / FIGURES / CURVES, [_titled(s) for s in summaries], start)
    rowed = _pictures(out, rows, methods, cases, pictures, load) if pictures and load else ()
    complete = {m: len({r.case for r in rows if r.method == m}) for m in methods}
    coverage = _Coverage(len(wanted), complete, skipped)
    _write_json(out / SUMMARY, facts, origin, coverage, summaries, costs)
    sections = [
        _facts_section(facts, origin, coverage),
        _main_section(summaries),
        _steps_section(summaries, start),
        *([_cost_section(costs)] if costs else []),
        *([Section("Best and worst cases", _PICTURE_NOTE, pictures=rowed)] if rowed else []),
        _notes_section(rows, skipped),
    ]
    (out / MARKDOWN).write_text("\n\n".join(map(_markdown, sections)) + "\n", encoding="utf-8")
    (out / HTML).write_text(_html(sections, out), encoding="utf-8")
    return summaries


_PICTURE_NOTE = (
    "By the first method's final DSC within each group: the slice with most of the classes, the truth, and "
    "what each method ended with.",
)


def _facts_section(
    facts: dict[str, Any],
    origin: Origin,
    coverage: _Coverage,
) -> Section:
    protocol = facts["protocol"]
    asked = (
        f"{_STARTS.get(protocol['start'], 'First click')}, then {protocol['clicks']} clicks for "
        f"each class; classes of at least {protocol['smallest']} "
        f"voxel{'s' if protocol['smallest'] != 1 else ''}"
        + (f", at most {protocol['most']} of a case" if protocol["most"] else "")
        + (f", only {', '.join(protocol['labels'])}" if protocol["labels"] else "")
        + (f"; limit {protocol['limit']:g} s for each class." if protocol["limit"] else "; no time limit.")
    )
    rows = [
        ("Command", f"`{origin.command}`"),
        ("Version", __version__),
        ("Machine", origin.machine),
        ("Protocol", asked),
    ]
    for name, count in coverage.done.items():
        described = _described(facts["methods"][name])
        rows.append((f"Method {name}", f"{described}; {count} of {coverage.asked} cases"))
    if coverage.skipped:
        rows.append(("Skipped", f"{len(coverage.skipped)} cases, see below"))
    return Section("Evaluation", columns=("", ""), rows=tuple(rows))


def _described(own: dict[str, Any]) -> str:
    if own.get("weights"):
        return "; ".join(
            f"{kind} {w['preset']}, {w['steps'] or 'unknown'} steps, SHA-256 `{w['sha256']}`"
            for kind, w in own["weights"].items()
        )
    if own.get("sha256"):
        return f"{own['kind']}, SHA-256 `{own['sha256']}`"
    return own["kind"]


def _main_section(summaries: Sequence[Summary]) -> Section:
    keys = ("dice_auc", "nsd_auc", "dice_final", "nsd_final")
    best: dict[tuple[str, str], float] = defaultdict(float)
    for s in summaries:
        for key in keys:
            best[s.group, key] = max(best[s.group, key], getattr(s, key).value)
    rows = [
        (
            _title(s.group) if first else "",
            s.method,
            str(s.cases),
            *(_mean_cell(getattr(s, key), getattr(s, key).value >= best[s.group, key]) for key in keys),
        )
        for s, first in _with_first(summaries)
    ]
    return Section(
        "Results",
        (
            "Means over cases, a case being the mean over its classes; in small print the 95 % interval of "
            "a bootstrap over cases. AUC: trapezoids over the five click steps, at most 4. NSD: tolerance "
            "2 in the unit of the spacing, 0 where a case's DSC is at most 0.2. Bold: best of the group.",
        ),
        ("Modality", "Method", "Cases", "DSC AUC", "NSD AUC", "DSC Final", "NSD Final"),
        tuple(rows),
    )


def _steps_section(summaries: Sequence[Summary], start: str) -> Section:
    steps = len(summaries[0].dice)
    rows = [
        (
            _title(s.group) if first else "",
            s.method,
            str(s.objects),
            *(f"{d:.3f}" for d in s.dice),
            f"{100 * s.harmful:.1f} %",
            f"{s.seconds:.2f}",
            str(s.failed),
            str(s.over_time),
        )
        for s, first in _with_first(summaries)
    ]
    return Section(
        "Click by click",
        (
            "Mean DSC after each step. Harmful: share of clicks after which the DSC of their object fell "
            "by more than 0.01. Seconds: of one step for all classes of a case. Failed: cases with a step "
            "that did not answer, which counts as empty. Late: cases over the time limit, all of whose "
            "scores are 0.",
        ),
        (
            *("Modality", "Method", "Objects", start),
            *(f"+{i}" for i in range(1, steps)),
            *("Harmful", "Seconds", "Failed", "Late"),
        ),
        tuple(rows),
        pictures=((f"{FIGURES}/{CURVES}", "Mean DSC by click"),),
    )


def _cost_section(costs: Sequence[NetworkRow]) -> Section:
    return Section(
        "Cost",
        (
            "Of our networks on this machine: a region is encoded once, each click in it is decoded. Two "
            "operations for a multiply-add; best of three runs.",
        ),
        cost.COLUMNS,
        tuple(cost.cells(costs)),
        names=1,
    )


def _notes_section(rows: Sequence[records.Row], skipped: dict[str, str]) -> Section:
    notes = [row for row in rows if row.label == records.WHOLE and row.note not in ("", "no box")]
    boxless = {row.case for row in rows if row.note == "no box"}
    lines = [(row.case, row.method, f"step {row.step}: {row.note}") for row in notes[:SHOWN_NOTES]]
    lines += [(case, "", f"skipped: {reason}") for case, reason in skipped.items()]
    text = [
        f"{len(notes)} steps failed or were late; {len(boxless)} cases have no box, so that their first step "
        f"scores 0; {len(skipped)} cases were skipped."
    ]
    if len(notes) > SHOWN_NOTES:
        text.append(
            f"The first {SHOWN_NOTES} are listed; `results.csv` names all of them in its column `note`."
        )
    text.append(
        "Every number above is made from `results.csv`: rows with the label `all` are cases, the others "
        "classes."
    )
    return Section(
        "Failures", tuple(text), ("Case", "Method", "What happened") if lines else (), tuple(lines)
    )


def _pictures(
    out: Path,
    rows: Sequence[records.Row],
    methods: Sequence[str],
    cases: Sequence[Case],
    count: int,
    load: Callable[[Case], Any],
) -> tuple[tuple[str, str], ...]:
    """Rows of pictures of each group's best and worst cases by the first method."""
    final = {(r.case, r.method): r for r in rows if r.label == records.WHOLE}
    by_name = {case.name: case for case in cases}
    groups: dict[str, list[records.Row]] = defaultdict(list)
    for (_, method), row in final.items():
        if method == methods[0]:
            groups[row.group].append(row)
    shown = []
    for group, own in sorted(groups.items()):
        ranked = sorted(own, key=lambda row: (-row.dice, row.case))
        chosen = ranked if len(ranked) <= 2 * count else [*ranked[:count], *ranked[-count:]]
        for row in chosen:
            found = []
            for method in methods:
                path = records.path_of(out, row.case, method).with_suffix(SLICES)
                if (row.case, method) in final and path.exists():
                    with np.load(path) as kept:
                        found.append((f"{method} {final[row.case, method].dice:.2f}", kept["labels"]))
            task = load(by_name[row.case])
            name = f"{FIGURES}/{records.path_of(out, row.case, '').stem}.png"
            figures.case_row(out / name, task, shown_slice(task), found)
            shown.append((name, f"{_title(group)}, {row.case}: DSC {row.dice:.3f}"))
    return tuple(shown)


def _write_json(
    path: Path,
    facts: dict[str, Any],
    origin: Origin,
    coverage: _Coverage,
    summaries: Sequence[Summary],
    costs: Sequence[NetworkRow],
) -> None:
    summary = {
        **facts,
        "version": __version__,
        **asdict(origin),
        "cases": asdict(coverage),
        "rows": [asdict(s) for s in summaries],
        "cost": [c.to_dict() for c in costs],
    }
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


# Text ---------------------------------------------------------------------------------------------------


def _title(group: str) -> str:
    return TITLES.get(group, group[:1].upper() + group[1:])


def _titled(summary: Summary) -> Summary:
    return Summary(**{**vars(summary), "group": _title(summary.group)})


def _with_first(summaries: Sequence[Summary]) -> list[tuple[Summary, bool]]:
    """Each summary, and whether it is the first of its group."""
    return [(s, at == 0 or summaries[at - 1].group != s.group) for at, s in enumerate(summaries)]


def _mean_cell(mean: Mean, best: bool) -> str:
    value = f"**{mean.value:.4f}**" if best else f"{mean.value:.4f}"
    return f"{value} <small>{mean.low:.3f}-{mean.high:.3f}</small>"


def _skipped(out: Path) -> dict[str, str]:
    return {
        path.stem.replace("__", "/"): path.read_text(encoding="utf-8")
        for path in sorted((out / SKIPPED).glob("*.txt"))
    }


def _skipped_sentence(out: Path) -> str:
    skipped = _skipped(out)
    if not skipped:
        return ""
    name, reason = next(iter(skipped.items()))
    return f"; {len(skipped)} were skipped, '{name}' because: {reason}"


def _markdown(section: Section) -> str:
    parts = [f"{'#' if section.title == 'Evaluation' else '##'} {section.title}", *section.paragraphs]
    if section.rows:
        lines = [section.columns, *section.rows]
        table = [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]
        aligned = ["---" if i < section.names else "---:" for i in range(len(section.columns))]
        parts.append("\n".join([table[0], f"| {' | '.join(aligned)} |", *table[1:]]))
    parts += [f"{caption}\n\n![{caption}]({file})" for file, caption in section.pictures]
    return "\n\n".join(parts)


def _html(sections: Sequence[Section], out: Path) -> str:
    body = []
    for section in sections:
        body.append(f"<h2>{html.escape(section.title)}</h2>")
        body += [f"<p>{_inline(text)}</p>" for text in section.paragraphs]
        if section.rows:
            head = "".join(_html_cells(section.columns, "th", section.names))
            lines = "".join(
                f"<tr>{''.join(_html_cells(row, 'td', section.names))}</tr>" for row in section.rows
            )
            body.append(f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>")
        for file, caption in section.pictures:
            data = base64.b64encode((out / file).read_bytes()).decode()
            shown = html.escape(caption)
            body.append(f'<p>{shown}<br><img alt="{shown}" src="data:image/png;base64,{data}"></p>')
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _html_cells(cells: Sequence[str], tag: str, names: int) -> list[str]:
    kinds = [' class="l"' if at < names else "" for at in range(len(cells))]
    return [f"<{tag}{kind}>{_inline(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)]


def _inline(text: str) -> str:
    """The little Markdown that cells use, as HTML; everything else is escaped."""
    escaped = html.escape(text, quote=False)
    escaped = re.sub(r"&lt;(/?)small&gt;", r"<\1small>", escaped)
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escaped)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", escaped)
