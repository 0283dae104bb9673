"""How long a new user waits on this machine: `make first-minute`.

A copy of the committed files is set up in a temporary folder with `make setup` as anybody would do it (pip
takes what it finds in its cache), the server is started there as `make serve` does, commands are called, and
where this repository has Playwright and a Chromium, the page is opened. Nothing of it stays.

    python scripts/first_minute.py [--reuse] [--out FILE]

`--reuse` measures with this repository's own .venv and leaves the set-up out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PATIENCE = 600.0
"""Seconds after which the server counts as never started."""
CALLS = (
    ("--help", []),
    ("weights list", []),
    ("a wrong path", ["segment", "nowhere.nii.gz", "--point", "1,2,3", "--out", "nowhere.nrrd"]),
    ("a wrong path of evaluate", ["evaluate", "--cases", "nowhere"]),
    ("a wrong path of predict", ["predict", "--input", "nowhere", "--output", "nowhere-else"]),
    ("a wrong path of train", ["train", "global", "--data", "nowhere"]),
    ("a wrong path of queue", ["queue", "--studies", "nowhere"]),
)
PAGE = "build/browser/sample-seconds.json"


def main() -> None:
    """Measure, print a line for each figure, and write them as JSON where asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reuse", action="store_true", help="use this repository's .venv")
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    # Python's own settings of whoever calls this would change what is measured.
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"):
        os.environ.pop(name, None)
    say(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}{in_the_background()}")
    with tempfile.TemporaryDirectory() as folder:
        place = REPOSITORY
        if not options.reuse:
            place = Path(folder) / "clone"
            set_up(place, figures)
        start(place, figures)
        call(place, figures)
    page(figures)
    if options.out is not None:
        measured = {"machine": f"{os.cpu_count()} cores", "figures": figures}
        options.out.write_text(json.dumps(measured, indent=1) + "\n")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(figures: dict[str, float], name: str, value: float, unit: str) -> None:
    figures[f"{name}, {unit}"] = round(value, 2)
    say(f"{name:<60} {value:8.2f} {unit}")


def in_the_background() -> str:
    """Processes that take half a core or more already, which make every figure worse."""
    listed = subprocess.run(
        ["ps", "-eo", "pid,pcpu,args"], capture_output=True, text=True, check=False
    ).stdout
    busy = []
    for line in listed.splitlines()[1:]:
        number, share, command = line.split(maxsplit=2)
        if float(share) > 50 and int(number) != os.getpid():
            busy.append(f"{command.strip()[:50]} ({float(share):.0f} % of a core)")
    return f"; at work already: {'; '.join(busy)}" if busy else ""


def set_up(place: Path, figures: dict[str, float]) -> None:
    """Clone what is committed and set it up."""
    subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(place)], check=True)
    begin = time.monotonic()
    subprocess.run(["make", "-s", "setup"], cwd=place, check=True)
    note(figures, "make setup", time.monotonic() - begin, "s")
    note(figures, "size of .venv", size(place / ".venv") / 1e9, "GB")
    begin = time.monotonic()
    subprocess.run(["make", "-s", "setup"], cwd=place, check=True)
    note(figures, "make setup once more", time.monotonic() - begin, "s")


def size(folder: Path) -> int:
    """Bytes that a folder takes on the disk, links not followed."""
    return sum(file.lstat().st_blocks * 512 for file in folder.rglob("*"))


def start(place: Path, figures: dict[str, float]) -> None:
    """Start the server twice: the first start of an installation compiles what the set-up did not."""
    for turn in ("the first start", "a start"):
        port = free_port()
        address = f"http://127.0.0.1:{port}"
        log = tempfile.NamedTemporaryFile()  # noqa: SIM115
        # On its command line: what `make first-minute ARGS=...` was given would count before the environment.
        arguments = f"ARGS=--port {port} --conf nninteractive=0"
        begin = time.monotonic()
        server = subprocess.Popen(
            ["make", "-s", "serve", arguments],
            cwd=place,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait(lambda at=address: answers(f"{at}/health"), server, log.name)
            note(figures, f"{turn}: from 'make serve' to /health 200", time.monotonic() - begin, "s")
            wait(lambda at=log.name: "Ready: " in Path(at).read_text(), server, log.name)
            note(figures, f"{turn}: from 'make serve' to the line 'Ready'", time.monotonic() - begin, "s")
            note(figures, f"{turn}: processor seconds until then", spent_by(server.pid), "s")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait()
            log.close()


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spent_by(group: int) -> float:
    """Processor seconds of a process group so far, which a busy machine does not change much."""
    ticks = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:
            # Over in the meantime.
            continue
        if int(fields[2]) == group:
            ticks += sum(int(fields[at]) for at in (11, 12, 13, 14))
    return ticks / os.sysconf("SC_CLK_TCK")


def wait(condition, server: subprocess.Popen[bytes], log: str) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if server.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"The server did not start:\n{Path(log).read_text()}")
        time.sleep(0.05)


def answers(address: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def call(place: Path, figures: dict[str, float]) -> None:
    """Processor seconds of commands that need no network."""
    for name, arguments in CALLS:
        command = [".venv/bin/python", "main.py", *(arguments or name.split())]
        spent = []
        for _ in range(2):
            process = subprocess.Popen(
                command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            _, _, usage = os.wait4(process.pid, 0)
            spent.append(usage.ru_utime + usage.ru_stime)
        note(figures, f"processor seconds of {name}", min(spent), "s")


def page(figures: dict[str, float]) -> None:
    """Seconds in a browser: a test of the page measures them on the sample."""
    python = REPOSITORY / ".venv" / "bin" / "python"
    found = subprocess.run([python, "-c", "import playwright"], capture_output=True, check=False)
    if found.returncode != 0 or not any(map(shutil.which, ("chromium", "chromium-browser"))):
        say("The page was not opened: `make test-page` installs what that takes.")
        return
    seconds = REPOSITORY / PAGE
    seconds.unlink(missing_ok=True)
    subprocess.run(
        [python, "-m", "pytest", "-q", "tests/browser/test_page_pictures.py", "-k", "seconds"],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if not seconds.exists():
        say("The page could not be measured: see `pytest tests/browser/test_page_pictures.py -k seconds`.")
        return
    for name, value in json.loads(seconds.read_text()).items():
        note(figures, f"page: {name}", value, "s")


if __name__ == "__main__":
    main()
