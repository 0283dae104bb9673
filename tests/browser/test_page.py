"""What an annotator does on the page, checked on the voxels that are stored and the pixels that are seen."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.support.live import Server, an_affine, an_image, free_port, make_weights, running, save

from .conftest import PICTURES, REPOSITORY
from .page import AXIAL, CORONAL, Annotator

pytestmark = pytest.mark.timeout(900)

SHAPE = (48, 60, 36)
NAMES = ("first", "second", "tenth", "third")
"""The last two are left without labels by every test."""
BOX = (0.28, 0.72)
"""Where the bright block lies in `an_image`, and a little around it, along each axis."""


@pytest.fixture(scope="module")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Oblique images with their axes in an order of their own, and small untrained networks."""
    folder = tmp_path_factory.mktemp("page")
    studies, weights = folder / "studies", folder / "weights"
    studies.mkdir()
    for seed, name in enumerate(NAMES):
        save(studies, name, an_image(SHAPE, seed), an_affine((2, 0, 1), (-1, 1, -1)))
    make_weights(weights)
    port = free_port()
    started = Server(f"http://127.0.0.1:{port}", studies, weights, folder, folder / "log.txt")
    command = [sys.executable, str(REPOSITORY / "main.py"), "serve", "--studies", str(studies)]
    command += ["--port", str(port), "--model-dir", str(weights), "--conf", "nninteractive=0"]
    environment = os.environ | {"MONAI_LABEL_SESSION_PATH": str(folder / "sessions")}
    with running(command, started, environment, "/health"):
        yield started


@pytest.fixture
def annotator(context: Any, page_server: Server) -> Iterator[Annotator]:
    if not (REPOSITORY / "apps/dualclickmed/lib/viewers/page/niivue.js").is_file():
        pytest.skip("needs NiiVue (scripts/page.sh)")
    found = Annotator(context, page_server.url)
    yield found
    assert found.errors == []
    # The page fetches nothing from anywhere else.
    assert found.outside == []


def test_an_annotator_segments_corrects_submits_and_trains(annotator: Annotator, page_server: Server) -> None:
    seconds = {"until the image is shown": annotator.open()}
    shape = annotator.about["shape"]
    low, high = ([round(side * n) for n in shape] for side in BOX)
    x, y, z = centre = tuple(n // 2 for n in shape)
    annotator.go(centre)
    annotator.sees_grey(AXIAL, centre)

    # A box by two drags: the second one, in another plane, gives the depth.
    annotator.press("b")
    annotator.drag(AXIAL, (low[0], low[1], z), (high[0], high[1], z))
    assert annotator.given["liver"]["box"]["flat"] == 2
    annotator.drag(CORONAL, (low[0], y, low[2]), (high[0], y, high[2]))
    box = annotator.given["liver"]["box"]
    assert box["flat"] is None
    drawn = np.reshape(box["edges"], (3, 2))
    np.testing.assert_allclose(drawn, np.stack([low, high], axis=1), atol=1.5)
    seconds["from the box to the mask"] = annotator.answered() / 1000
    boxed = annotator.label_map()
    assert boxed[centre] == 1
    outside = np.ones(shape, bool)
    outside[tuple(slice(max(0, a - 1), b + 1) for a, b in drawn)] = False
    assert not boxed[outside].any()
    annotator.sees_red(AXIAL, (x + 3, y + 3, z))

    # What is clicked as outside is outside.
    annotator.press("c")
    wrong_x, wrong_y = np.argwhere(boxed[:, :, z] == 1)[3].tolist()
    wrong = (wrong_x, wrong_y, z)
    annotator.click(AXIAL, wrong, outside=True)
    seconds["from the click to the mask"] = annotator.answered() / 1000
    corrected = annotator.label_map()
    assert corrected[wrong] == 0 and corrected[centre] == 1

    # A second label leaves the first one alone.
    annotator.add_label("my own")
    other = (low[0] // 2, low[1] // 2, z)
    annotator.click(AXIAL, other)
    annotator.answered()
    both = annotator.label_map()
    assert both[other] == 2
    np.testing.assert_array_equal(both == 1, corrected == 1)

    # Undo and redo without end, and without asking the server again.
    for expected in (corrected, boxed):
        annotator.press("Control+z")
        annotator.answered()
        np.testing.assert_array_equal(annotator.label_map(), expected)
    # One of the states before had been overtaken by the next, and gets its answer now.
    for _ in range(4):
        annotator.press("Control+z")
        annotator.answered()
    assert not annotator.label_map().any()
    for _ in range(6):
        annotator.press("Control+Shift+z")
    annotator.answered()
    np.testing.assert_array_equal(annotator.label_map(), both)

    # A reload brings the clicks back.
    annotator.page.wait_for_timeout(900)
    annotator.page.on("dialog", lambda dialog: dialog.accept())
    annotator.open()
    np.testing.assert_array_equal(annotator.label_map(), both)
    assert annotator.given["my own"]["marks"] == [{"points": [list(other)], "inside": True}]

    check_submitting(annotator, page_server, both)
    check_training(annotator)
    PICTURES.mkdir(parents=True, exist_ok=True)
    (PICTURES / "page-seconds.json").write_text(json.dumps(seconds, indent=2))


def check_submitting(annotator: Annotator, server: Server, expected: np.ndarray) -> None:
    """The stored label holds each voxel at its place in the patient; then comes the next image."""
    about = annotator.about
    annotator.page.click("#submit")
    annotator.page.wait_for_selector(".toast.good")
    assert "liver" in annotator.text(".toast.good") and "my own" in annotator.text(".toast.good")
    final = nib.load(server.studies / "labels" / "final" / "first.nii.gz")
    image = nib.load(server.studies / "first.nii.gz")
    np.testing.assert_allclose(final.affine, image.affine, atol=1e-5)
    points = np.argwhere(expected > 0)
    world = np.c_[points, np.ones(len(points))] @ np.asarray(about["affine"]).T
    index = np.rint(world @ np.linalg.inv(image.affine).T)[:, :3].astype(int)
    stored = np.asarray(final.dataobj)
    np.testing.assert_array_equal(stored[tuple(index.T)], expected[expected > 0])
    assert np.count_nonzero(stored) == len(points)
    annotator.page.click("#next")
    annotator.wait(
        "window.dualclickmed.session.image === 'second' && document.getElementById('loading').hidden"
    )
    assert not annotator.label_map().any()
    annotator.wait("document.querySelector('#list button[data-id=first]')?.innerText.includes('Done')")


def check_training(annotator: Annotator) -> None:
    """What waits is shown; a training starts, is shown, and ends when it is stopped."""
    annotator.press("a")
    annotator.page.wait_for_selector("#learning .expert")
    annotator.wait("document.querySelector('.expert[data-kind=local]')?.innerText.includes('1 waiting')")
    annotator.page.click("#train-local")
    annotator.page.wait_for_selector("#stop-local, #stop-global")
    annotator.wait("document.getElementById('server').innerText.includes('training')")
    annotator.page.click("#stop-local")
    annotator.page.wait_for_selector("#train-local:enabled")
    annotator.press("a")


def test_mistakes_are_told_by_the_server_s_sentence_and_nothing_is_lost(annotator: Annotator) -> None:
    annotator.open()
    annotator.page.evaluate("window.dualclickmed.session.addLabel('a,b')")
    annotator.click(AXIAL, tuple(n // 2 for n in annotator.about["shape"]))
    annotator.page.wait_for_selector(".toast.bad")
    assert "without a comma" in annotator.text(".toast.bad")
    assert len(annotator.given["a,b"]["marks"]) == 1


def test_an_answer_can_be_cancelled(annotator: Annotator) -> None:
    annotator.open()
    annotator.page.route("**/page/segment**", lambda route: None)
    annotator.click(AXIAL, tuple(n // 2 for n in annotator.about["shape"]))
    annotator.page.wait_for_selector("#busy:not([hidden])")
    annotator.press("Escape")
    annotator.page.wait_for_selector("#busy", state="hidden")
    assert not annotator.label_map().any()


def test_everything_has_a_name_and_a_key(annotator: Annotator) -> None:
    annotator.open()
    unnamed = annotator.page.evaluate(
        """() => [...document.querySelectorAll('button, input, select')].filter((one) => one.offsetParent
            && !(one.textContent.trim() || one.ariaLabel || one.title || one.labels?.length))
            .map((one) => one.outerHTML)"""
    )
    assert unnamed == []
    centre = [n // 2 for n in annotator.about["shape"]]
    annotator.press("?")
    annotator.page.wait_for_selector("#help-sheet[open]")
    annotator.press("Escape")
    before = annotator.page.evaluate("window.dualclickmed.viewer.crosshair")
    annotator.press("PageUp")
    assert annotator.page.evaluate("window.dualclickmed.viewer.crosshair")[2] == before[2] + 1
    annotator.press("Space")
    annotator.answered()
    assert annotator.given["liver"]["marks"][0]["points"] == [[centre[0], centre[1], before[2] + 1]]


def test_the_page_is_whole_at_1280_x_720(annotator: Annotator) -> None:
    annotator.page.set_viewport_size({"width": 1280, "height": 720})
    annotator.open()
    annotator.page.evaluate("document.getElementById('title').textContent = 'MR_'.repeat(40)")
    annotator.add_label("the longest name that a label may have is of sixty-four characters"[:64])
    annotator.click(AXIAL, tuple(n // 2 for n in annotator.about["shape"]))
    annotator.answered()
    outside = annotator.page.evaluate(
        """() => [...document.querySelectorAll('header *, #tools *, #labels *, footer *')].filter((one) => {
            const {left, right, bottom, width} = one.getBoundingClientRect()
            return width && (right > innerWidth + 1 || bottom > innerHeight + 1 || left < -1)
        }).map((one) => one.id || one.tagName)"""
    )
    assert outside == []
    assert annotator.page.evaluate("document.documentElement.scrollHeight <= innerHeight")


def test_where_no_image_can_be_opened_the_page_says_so_and_offers_nothing(annotator: Annotator) -> None:
    def refuse(route: Any) -> None:
        route.fulfill(status=400, json={"detail": "This image is damaged."})

    annotator.page.route("**/page/image?**", refuse)
    annotator.page.goto(annotator.url)
    annotator.page.wait_for_selector(".toast.bad")
    annotator.page.wait_for_selector("#empty:not([hidden])")
    assert "damaged" in annotator.text(".toast.bad") and "Choose one on the left" in annotator.text("#empty")
    assert annotator.page.evaluate("document.querySelector('#annotate').inert")
    assert annotator.page.locator("#submit, #undo, #redo").evaluate_all(
        "all => all.every((one) => one.disabled)"
    )
    # The next one can be read.
    annotator.page.unroute("**/page/image?**")
    annotator.page.locator("#list button").last.click()
    annotator.shown()
    assert annotator.page.locator("#empty, .toast.bad").evaluate_all("all => all.every((one) => one.hidden)")
    assert not annotator.page.evaluate("document.querySelector('#annotate').inert")


def test_what_the_server_knows_is_shown(annotator: Annotator) -> None:
    """Millilitres, where to click next, how unsure it is, and a picture of each image."""
    annotator.open()
    centre = tuple(n // 2 for n in annotator.about["shape"])
    annotator.page.evaluate("document.getElementById('doubt').click()")
    annotator.click(AXIAL, centre)
    annotator.answered()
    voxels = int((annotator.label_map() == 1).sum())
    litres = voxels * float(np.prod(annotator.about["spacing"])) / 1000
    shown = annotator.text("#labels li:first-child .ml")
    assert shown.endswith(" ml") and float(shown.split()[0]) == pytest.approx(litres, rel=0.02, abs=0.006)
    suggested = annotator.page.evaluate("window.dualclickmed.session.answer.suggestions.liver")
    annotator.press("g")
    assert annotator.page.evaluate("window.dualclickmed.viewer.crosshair") == suggested
    doubt = annotator.page.evaluate("[...window.dualclickmed.session.answer.parts.doubt.voxels]")
    assert 0 < max(doubt) <= 100
    annotator.wait("document.querySelectorAll('#list .thumb img').length === 4")
    sizes = annotator.page.evaluate("[...document.querySelectorAll('.thumb img')].map((i) => i.naturalWidth)")
    assert all(20 < size <= 96 for size in sizes)


def test_who_is_in_a_hurry_gets_what_who_waits_gets(annotator: Annotator) -> None:
    """Clicks, labels, undo and another image, none of which waits for an answer, end in a whole state."""
    annotator.page.goto(f"{annotator.url}/page/#third")
    annotator.shown()
    x, y, z = (n // 2 for n in annotator.about["shape"])
    annotator.click(AXIAL, (x, y, z))
    annotator.click(AXIAL, (x + 3, y, z))
    annotator.add_label("my own")
    annotator.click(AXIAL, (x // 4, y // 4, z))
    annotator.press("1")
    annotator.click(AXIAL, (x, y + 4, z), outside=True)
    for _ in range(2):
        annotator.press("Control+z")
    annotator.press("Control+Shift+z")
    # What was taken back or done again is chosen.
    assert annotator.page.evaluate("window.dualclickmed.session.label.name") == "my own"
    annotator.press("1")
    annotator.press("l")
    annotator.click(AXIAL, (x - 3, y, z))
    annotator.press("l")
    annotator.answered()
    whole = annotator.label_map()
    given = annotator.given
    assert whole[x, y, z] == 1 and whole[x // 4, y // 4, z] == 2
    assert {name: len(of["marks"]) for name, of in given.items()} == {"liver": 3, "my own": 1}

    # In the middle of an answer to the other image and back.
    annotator.click(AXIAL, (x + 1, y + 1, z))
    annotator.page.click("#list button[data-id=tenth]")
    opened = "window.dualclickmed.session.image === '{}' && !window.dualclickmed.session.opening"
    annotator.wait(opened.format("tenth"))
    assert not annotator.label_map().any()
    annotator.page.click("#list button[data-id=third]")
    annotator.wait(opened.format("third"))
    annotator.answered()
    assert len(annotator.given["liver"]["marks"]) == 4
    annotator.press("Control+z")
    annotator.answered()
    assert annotator.given == given

    # All the way back and forth again.
    states = annotator.page.evaluate("window.dualclickmed.session.history.at")
    last = annotator.label_map()
    for _ in range(states):
        annotator.press("Control+z")
    annotator.answered()
    assert not annotator.label_map().any()
    for _ in range(states):
        annotator.press("Control+Shift+z")
    annotator.answered()
    np.testing.assert_array_equal(annotator.label_map(), last)


def test_every_key_and_wheel_does_what_the_sheet_says(annotator: Annotator) -> None:
    annotator.open()
    x, y, z = centre = tuple(n // 2 for n in annotator.about["shape"])
    annotator.click(AXIAL, centre)
    annotator.answered()
    of = "window.dualclickmed"
    zoomed = f"{of}.viewer.nv.scene.pan2Dxyzmm[3]"
    for key, then in (
        ("o", f"{of}.settings.outline && document.getElementById('outline').checked"),
        ("x", f"!{of}.settings.crosshair"),
        ("l", f"!{of}.settings.lock"),
        ("d", f"{of}.settings.doubt"),
        ("]", f"Math.abs({of}.settings.opacity - 0.55) < 1e-9"),
        ("[", f"Math.abs({of}.settings.opacity - 0.45) < 1e-9"),
        ("w", "document.getElementById('window').selectedIndex === 1"),
        ("+", f"{zoomed} > 1.2"),
        ("-", f"{zoomed} < 1.2"),
        ("0", f"{zoomed} === 1"),
        ("p", f"{of}.viewer.main === 1"),
        ("m", f"{of}.settings.layout === 'equal'"),
        ("m", f"{of}.settings.layout === 'alone' && {of}.viewer.tiles.length === 1"),
        ("m", f"{of}.settings.layout === 'one' && {of}.viewer.tiles.length === 4"),
        ("h", f"!{of}.session.labels[0].shown"),
        ("h", f"{of}.session.labels[0].shown"),
        ("t", "document.documentElement.dataset.theme === 'dark'"),
        ("s", "document.querySelector('[data-tool=scribble]').ariaPressed === 'true'"),
        ("v", "document.querySelector('[data-tool=move]').ariaPressed === 'true'"),
        ("c", "document.querySelector('[data-tool=click]').ariaPressed === 'true'"),
        ("ArrowLeft", f"{of}.viewer.crosshair.join() !== '{x},{y},{z}'"),
        ("Delete", f"!{of}.session.map.counts[1]"),
        ("u", f"{of}.session.map.counts[1] > 0"),
        ("Control+y", f"!{of}.session.map.counts[1]"),
    ):
        annotator.press(key)
        annotator.wait(f"!!({then})")
    annotator.press("p")
    annotator.press("p")
    annotator.wait(f"{of}.viewer.tiles[0].plane === {AXIAL}")

    px, py = annotator.place(AXIAL, centre)
    page = annotator.page
    page.mouse.move(px, py)
    slice_before = page.evaluate(f"{of}.viewer.crosshair")[2]
    page.mouse.wheel(0, -100)
    annotator.wait(f"{of}.viewer.crosshair[2] === {slice_before + 1}")
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    annotator.wait(f"{zoomed} > 1.1")
    level = page.evaluate("document.getElementById('level').value")
    page.mouse.down(button="right")
    page.mouse.move(px + 30, py + 40)
    page.mouse.up(button="right")
    annotator.wait(f"document.getElementById('level').value !== '{level}'")
    panned = page.evaluate(f"{of}.viewer.nv.scene.pan2Dxyzmm[0]")
    page.mouse.down(button="middle")
    page.mouse.move(px + 80, py + 40)
    page.mouse.up(button="middle")
    annotator.wait(f"{of}.viewer.nv.scene.pan2Dxyzmm[0] !== {panned}")


def test_a_box_is_corrected_by_its_handles_and_a_stroke_is_a_scribble(annotator: Annotator) -> None:
    annotator.open()
    x, y, z = centre = tuple(n // 2 for n in annotator.about["shape"])
    annotator.go(centre)
    annotator.press("b")
    annotator.drag(AXIAL, (x - 8, y - 6, z), (x + 8, y + 6, z))
    annotator.answered()
    drawn = annotator.given["liver"]["box"]
    assert drawn["flat"] == 2
    # A corner of the rectangle: it stays one.
    corner = (drawn["edges"][1] - 0.5, drawn["edges"][3] - 0.5, z)
    annotator.drag(AXIAL, corner, (x + 11, y + 8, z))
    annotator.answered()
    pulled = annotator.given["liver"]["box"]
    assert pulled["flat"] == 2 and pulled["edges"][1] > drawn["edges"][1]
    assert pulled["edges"][::2] == drawn["edges"][::2]
    # In another plane the rectangle gets its depth.
    annotator.drag(CORONAL, (x - 8, y, z - 5), (x + 11, y, z + 5))
    annotator.answered()
    whole = annotator.given["liver"]["box"]
    assert whole["flat"] is None and whole["edges"][5] - whole["edges"][4] >= 9
    annotator.press("s")
    annotator.drag(AXIAL, (x - 4, y, z), (x + 4, y, z))
    annotator.answered()
    (stroke,) = annotator.given["liver"]["marks"]
    assert len(stroke["points"]) >= 7 and stroke["inside"]
    for point in (stroke["points"][0], stroke["points"][-1]):
        assert annotator.label_map()[tuple(point)] == 1
