"""Answers to case files of the interactive challenge, as its program gives them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import PromptError, UserError
from ..experts import DualExpert
from ..imaging.case_files import MAX_CLASS, SUFFIX, CaseFile, case_files, read_case, save_arrays
from ..strategies import DEFAULT_STRATEGY


def answer(
    case: CaseFile, expert: DualExpert, strategy: str = DEFAULT_STRATEGY
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Answer a case.

    All classes are segmented together, so that overlaps are settled by probability. Where that is impossible
    each class is tried on its own, and one that fails stays empty.

    Returns:
        ``segs`` (D, H, W), and a sentence for each class that failed.
    """
    prompts = case.prompts()
    volume = case.volume
    given = {str(value): own for value, own in prompts.items()}
    table = np.zeros(MAX_CLASS + 1, dtype=np.uint8)
    if not given:
        return np.zeros(volume.shape, dtype=np.uint8), []
    try:
        result = expert.segment(volume, given, strategy=strategy)
    except PromptError as error:
        if len(given) == 1:
            return np.zeros(volume.shape, dtype=np.uint8), [f"class {next(iter(given))}: {error}"]
    else:
        for label, at in result.values.items():
            table[at] = int(label)
        return table[result.labels], []
    segs, failures = np.zeros(volume.shape, dtype=np.uint8), []
    for label, own in given.items():
        try:
            result = expert.segment(volume, {label: own}, strategy=strategy)
        except PromptError as error:
            failures.append(f"class {label}: {error}")
        else:
            segs[(result.labels > 0) & (segs == 0)] = int(label)
    return segs, failures


def predict_folder(
    source: Path, out: Path, expert: DualExpert, strategy: str = DEFAULT_STRATEGY
) -> Iterator[tuple[str, list[str]]]:
    """Answer every case file of a folder with a file of the same name.

    A case that cannot be read or answered gets no file, as the challenge counts it, and does not keep the
    others from theirs.

    Yields:
        The name of each case and what went wrong with it.

    Raises:
        UserError: the folder is missing or holds no case file, or `out` is the same folder.
    """
    files = case_files(source)
    if not files:
        raise UserError(f"'{source}' holds no case file ({SUFFIX}).")
    if out.resolve() == source.resolve():
        raise UserError(f"The answers would replace the case files: '{out}' is given as input and as output.")
    out.mkdir(parents=True, exist_ok=True)
    for path in files:
        try:
            segs, failures = answer(read_case(path), expert, strategy)
        except UserError as error:
            yield path.name, [str(error)]
            continue
        save_arrays(out / path.name, {"segs": segs})
        yield path.name, failures
