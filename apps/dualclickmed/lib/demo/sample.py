"""The sample study: a generated CT of a trunk whose organs are known exactly.

``make serve`` offers it to click in without any patient data. Anatomy is written as distances in
millimetres: ellipsoids and tubes in a patient frame (x to the left, y to the back, z up), bent by one smooth
random warp, painted in order of priority with the attenuation of a portal-venous contrast phase, blurred, and
given noise as a scanner would. The same seed gives the same bytes.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

Values = npt.NDArray[np.float32]
"""Values on the volume's grid (z, y, x); as a distance in millimetres it is negative inside."""
Extent = npt.NDArray[np.bool_]
Vector = tuple[float, float, float]

SHAPE = (128, 160, 192)
"""Slices, rows, columns."""
SPACING = (3.0, 2.0, 2.0)
ORIGIN = (0.0, -152.0, -191.0)
"""Patient (z, y, x) of the first voxel's centre."""
STEM = "trunk_ct"
ORGANS = (
    "liver",
    "spleen",
    "right kidney",
    "left kidney",
    "stomach",
    "gallbladder",
    "pancreas",
    "aorta",
    "inferior vena cava",
    "heart",
    "right lung",
    "left lung",
    "spine",
    "urinary bladder",
)
"""Names of the label values 1, 2, ..."""

_FAR = 1e3
_AIR, _FAT, _MUSCLE, _SKIN = -1000.0, -100.0, 58.0, 20.0
_VERTEBRA = 36.0
"""Height of a vertebra with its disc."""


@dataclass(frozen=True)
class SampleFiles:
    """What :func:`write_sample` wrote."""

    image: Path
    truth: Path
    names: Path


def write_sample(folder: Path, seed: int = 0) -> SampleFiles:
    """Write the study into ``folder`` and its true labels into the sibling ``<folder>-truth``.

    The labels stay outside because MONAI Label takes an image whose final label lies in its studies for done.

    Args:
        folder: made if missing; files of the same name are replaced.
        seed: of everything random.
    """
    volume, labels, affine = make_trunk(seed)
    truth = folder.with_name(folder.name + "-truth")
    files = SampleFiles(folder / f"{STEM}.nii.gz", truth / f"{STEM}.nii.gz", truth / "labels.json")
    for path, array in ((files.image, volume), (files.truth, labels)):
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(array, affine)
        image.set_qform(affine, code=1)
        image.set_sform(affine, code=1)
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, path)
    files.names.write_text(
        json.dumps({name: value for value, name in enumerate(ORGANS, 1)}, indent=2) + "\n", encoding="utf-8"
    )
    return files


def make_trunk(
    seed: int = 0,
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """Generate the volume.

    Args:
        seed: of everything random.

    Returns:
        The CT in Hounsfield units, its labels (i + 1 stands for ``ORGANS[i]``) and their affine (RAS). Both
        arrays are in file order (i, j, k), which run to the left, to the back and up: 192 x 160 x 128 voxels
        of 2 x 2 x 3 mm.
    """
    trunk = _Trunk(np.random.default_rng(seed))
    trunk.paint_wall()
    trunk.paint_skeleton()
    trunk.paint_chest()
    trunk.paint_bowel()
    trunk.paint_abdomen()
    trunk.paint_vessels()
    trunk.tidy()
    volume = trunk.scan()
    z, y, x = ORIGIN
    dz, dy, dx = SPACING
    affine = np.array([[-dx, 0, 0, -x], [0, -dy, 0, -y], [0, 0, dz, z], [0, 0, 0, 1]], dtype=np.float64)
    return (
        np.ascontiguousarray(volume.transpose(2, 1, 0)),
        np.ascontiguousarray(trunk.labels.transpose(2, 1, 0)),
        affine,
    )


class _Trunk:
    """A trunk being painted: attenuation, labels, and the warped coordinates that shapes use."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        grids = [
            np.arange(n, dtype=np.float32) * np.float32(d) + np.float32(o)
            for n, d, o in zip(SHAPE, SPACING, ORIGIN, strict=True)
        ]
        self.axes = grids
        z, y, x = np.meshgrid(*grids, indexing="ij", sparse=True)
        self.table = np.broadcast_to(y - 132.0 + 0.0006 * x**2, SHAPE)
        self.x = x + 6 * self.noise(55)
        self.y = y + 5 * self.noise(55)
        self.z = z + 7 * self.noise(55)
        self.rough = self.noise(11)
        self.fine = self.noise(3.2)
        self.hu = np.full(SHAPE, _AIR, dtype=np.float32)
        self.labels = np.zeros(SHAPE, dtype=np.uint8)
        self.depth = self._depth()
        self.wall = 16 + 7 * np.exp(-(((self.z - 90) / 90) ** 2)) + 5 * np.exp(-((self.x / 45) ** 2))
        self.wall = self.wall.astype(np.float32)
        self.cavity = self.depth - self.wall - 13
        self.dome = self._dome()

    def noise(self, scale: float) -> Values:
        """Smooth noise of unit variance whose features are about ``scale`` mm wide."""
        steps = [max(1, int(scale / (2.5 * d))) for d in SPACING]
        coarse = [n // s + 4 for n, s in zip(SHAPE, steps, strict=True)]
        white = self.rng.standard_normal(coarse).astype(np.float32)
        sigma = [scale / (2 * d * s) for d, s in zip(SPACING, steps, strict=True)]
        smooth = ndimage.gaussian_filter(white, sigma, mode="wrap")
        smooth = smooth / smooth.std()
        if max(steps) == 1:
            return np.ascontiguousarray(smooth[: SHAPE[0], : SHAPE[1], : SHAPE[2]])
        matrix = [1 / s for s in steps]
        return ndimage.affine_transform(smooth, matrix, offset=1.0, output_shape=SHAPE, order=1)

    def ellipsoid(self, centre: Vector, radii: Vector, turn: float = 0.0, tip: float = 0.0) -> Values:
        """Distance to an ellipsoid; (x, y, z) in mm, ``turn`` about z and then ``tip`` about y in degrees."""
        out, box = self._near(np.array([centre]), max(radii) + 25)
        x, y, z = (c[box] - o for c, o in zip((self.x, self.y, self.z), centre, strict=True))
        cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        x, y = cos * x + sin * y, cos * y - sin * x
        cos, sin = np.cos(np.radians(tip)), np.sin(np.radians(tip))
        x, z = cos * x + sin * z, cos * z - sin * x
        a, b, c = radii
        near = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
        slope = np.sqrt((x / a**2) ** 2 + (y / b**2) ** 2 + (z / c**2) ** 2) + 1e-6
        out[box] = near * (near - 1) / slope
        return out

    def tube(self, path: Sequence[Vector], radii: Sequence[float]) -> Values:
        """Distance to a tube along a polyline (x, y, z) whose radius changes linearly between its corners."""
        out = np.full(SHAPE, _FAR, dtype=np.float32)
        for (start, end), (r0, r1) in zip(itertools.pairwise(path), itertools.pairwise(radii), strict=True):
            _, box = self._near(np.array([start, end]), max(r0, r1) + 25)
            point = [c[box] - o for c, o in zip((self.x, self.y, self.z), start, strict=True)]
            along = np.array(end) - np.array(start)
            t = sum(p * a for p, a in zip(point, along, strict=True)) / float(along @ along)
            t = np.clip(t, 0, 1)
            gap = np.sqrt(sum((p - t * a) ** 2 for p, a in zip(point, along, strict=True)))
            np.minimum(out[box], gap - (r0 + t * (r1 - r0)), out=out[box])
        return out

    def _near(self, points: npt.NDArray[np.float64], margin: float) -> tuple[Values, tuple[slice, ...]]:
        """A field that is far outside everywhere, and the block of voxels around ``points`` (x, y, z)."""
        lo = points.min(axis=0)[::-1] - margin
        hi = points.max(axis=0)[::-1] + margin
        box = tuple(
            slice(int(np.searchsorted(axis, a)), int(np.searchsorted(axis, b)))
            for axis, a, b in zip(self.axes, lo, hi, strict=True)
        )
        return np.full(SHAPE, _FAR, dtype=np.float32), box

    def _depth(self) -> Values:
        """Millimetres under the skin (negative outside the body)."""
        z = self.z / 384
        half_x = 158 + 14 * np.cos(2 * np.pi * (z - 0.12)) + 6 * z
        half_y = 104 + 8 * np.cos(2 * np.pi * (z - 0.75))
        power = 2.35
        r = (np.abs(self.x / half_x) ** power + np.abs(self.y / half_y) ** power) ** (1 / power) + 1e-6
        radius = np.sqrt(self.x**2 + self.y**2) / r + 1e-3
        return ((1 - r) * radius).astype(np.float32)

    def _dome(self) -> Values:
        """Height of the diaphragm over each voxel."""
        right = 88 * np.exp(-(((self.x + 68) / 62) ** 2) - ((self.y + 8) / 72) ** 2)
        left = 76 * np.exp(-(((self.x - 72) / 58) ** 2) - ((self.y + 8) / 72) ** 2)
        middle = 66 * np.exp(-((self.x / 50) ** 2) - ((self.y + 30) / 60) ** 2)
        return (214 + np.maximum(np.maximum(right, left), middle)).astype(np.float32)

    def fill(self, region: Extent, hu: float, texture: float = 0.0, organ: str | None = None) -> None:
        """Paint a region; a named organ takes its voxels from other organs, other paint clears no label."""
        self.hu[region] = hu + (texture * self.fine[region] if texture else 0.0)
        if organ is not None:
            self.labels[region] = ORGANS.index(organ) + 1

    def paint_wall(self) -> None:
        """Skin, fat, the muscles of the trunk's wall, and the table."""
        self.fill((self.table > 0) & (self.table < 26), -930)
        self.fill((self.table > 0) & (self.table < 4), -110)
        self.fill((self.table > 22) & (self.table < 26), -110)
        body = self.depth > 0
        self.fill(body, _FAT, 7)
        self.fill(body & (self.depth < 2.2), _SKIN)
        strands = np.abs(self.noise(14)) < 0.05
        self.fill(body & (self.depth > 4) & (self.cavity < -14) & strands, -50)
        muscle = (self.depth > self.wall) & (self.cavity < 0)
        self.fill(muscle, _MUSCLE, 9)
        layers = np.abs(self.cavity + 6 + 1.5 * self.rough) < 1.0
        self.fill(muscle & layers & (self.z < 215), -40)
        # The straight muscles of the belly leave a cord of fat between them.
        self.fill(muscle & (np.abs(self.x) < 2.5) & (self.y < 0) & (self.z < 260), -30)

    def paint_skeleton(self) -> None:
        """Spine with its muscles, ribs, breastbone and pelvis."""
        x, y, z = self.x, self.y, self.z
        back = y - 47 - 9 * np.sin((z - 60) / 62) - 0.0035 * np.maximum(95 - z, 0) ** 2
        for side in (-1, 1):
            erector = np.hypot((x - side * 31) / 27, (back - 30) / 21) - 1 + 0.08 * self.rough
            self.fill((erector < 0) & (self.depth > 12), _MUSCLE, 10)
            psoas = np.hypot((x - side * (30 + (215 - z) * 0.12)) / 19, (back + 2 + (215 - z) * 0.1) / 20) - 1
            self.fill((psoas + 0.05 * self.rough < 0) & (z < 215) & (self.cavity > -4), _MUSCLE, 9)
        level = np.mod(z, _VERTEBRA) - _VERTEBRA / 2
        width = 18.5 + 0.017 * (384 - z) + 0.010 * level**2
        body = (np.hypot(x / width, back / (0.76 * width)) - 1) * 20 + 0.6 * self.rough
        canal = (np.hypot(x / 11, (back - 26) / 9) - 1) * 9
        ring = (np.hypot(x / 17, (back - 26) / 15.5) - 1) * 15
        arch = (ring < 0) & (level > -13) & (level < 9)
        spinous = (np.abs(x) < 3.6) & (back > 36) & (back < 58) & (np.abs(level + 4 + 0.25 * (back - 40)) < 9)
        transverse = (np.abs(x) < 38) & (np.abs(back - 20) < 4.5) & (np.abs(level) < 5.5)
        disc = (np.abs(level) > _VERTEBRA / 2 - 4.2) & (body < 0)
        bone = (body < 0) | ((arch | spinous | transverse) & (canal > 0))
        bone &= self.depth > 6
        shell = ndimage.distance_transform_edt(bone & ~disc, sampling=SPACING).astype(np.float32)
        marrow = 185 + 45 * self.fine + 15 * self.rough
        self.fill(bone, 0, organ="spine")
        self.hu[bone] = np.where(shell < 3.1, 520, marrow)[bone]
        self.fill(disc & bone, 92, 6, organ="spine")
        self.fill((canal < 0) & (self.depth > 6), 15)
        self.fill((np.hypot(x / 6, (back - 26) / 5.5) < 1) & (z > 150), 42)

        frame = self.cavity + 5
        slope = z - 0.52 * y + 0.32 * np.abs(x)
        band = np.abs(np.mod(slope, 31) - 15.5)
        arc = z > 205 - 0.9 * y - 25 * (y > 30)
        front = y < -52
        rib = (np.hypot(frame, band * 0.72) < 4.3) & arc & (np.abs(x) > 16)
        self.fill(rib & ~front, 420)
        self.fill((np.hypot(frame, band * 0.72) < 2.0) & arc & ~front & (np.abs(x) > 16), 190, 25)
        self.fill(rib & front, 105, 12)
        sternum = (np.abs(frame) < 5.5) & (np.abs(x) < 17 + 0.05 * (z - 300)) & (y < 0) & (z > 268)
        self.fill(sternum, 330)
        self.fill(sternum & (np.abs(frame) < 3.2) & (np.abs(x) < 13), 140, 25)

        for side in (-1, 1):
            wing = self.ellipsoid((side * 62, 12, 78), (62, 74, 84), turn=side * 28)
            wing += 1.5 * self.rough
            part = (side * x > 38) & (y > -52 + 0.3 * (118 - z)) & (z < 124 - 0.004 * (y - 25) ** 2)
            gluteal = (wing > 0) & (wing < 30) & (side * x > 30) & (y > -20) & (z < 115) & (self.depth > 24)
            self.fill(gluteal, _MUSCLE, 12)
            iliacus = (wing < 0) & (wing > -13) & part & (z < 112)
            self.fill(iliacus & (self.hu < 0), _MUSCLE, 9)
            plate = np.abs(wing) - (4.2 + 3.0 * np.exp(-(((z - 45) / 30) ** 2)))
            self.fill((plate < 0) & part & (self.depth > 10), 480)
            self.fill((plate < -2.6) & part & (self.depth > 10), 210, 30)

    def paint_chest(self) -> None:
        """Lungs, heart and the great vessels' bed."""
        heart = self.ellipsoid((20, -34, 322), (58, 44, 42), turn=-28, tip=22) + 1.2 * self.rough
        heart = np.maximum(heart, self.dome + 3 - self.z)
        half = 24 + 10 * np.exp(-(((self.y - 45) / 22) ** 2)) + 6 * np.exp(-(((self.z - 384) / 40) ** 2))
        inside = (self.cavity > 1.5) & (self.z > self.dome + 2.5) & (np.abs(self.x - 2) > half)
        inside &= (heart > 4) & (self.labels == 0) & (self.hu < 0)
        first, second = self.noise(17), self.noise(17)
        for side, organ in ((-1, "right lung"), (1, "left lung")):
            lung = inside & (side * (self.x - 2) > 0)
            root = np.sqrt((self.x - side * 34) ** 2 + (self.y - 12) ** 2 + (self.z - 335) ** 2)
            tone = -868 + 26 * self.rough + 0.35 * (self.y + 60)
            self.fill(lung, 0, organ=organ)
            self.hu[lung] = tone[lung] + 14 * self.fine[lung]
            # Two smooth fields vanish together along curves: vessels, thicker near the root.
            thickness = 0.13 + 0.30 * np.exp(-root / 50)
            vessels = np.hypot(first, second) < thickness
            self.fill(lung & vessels, 45)
            self.fill(lung & (root < 17 + 3 * self.rough), 60)
        self.fill((np.abs(self.z - self.dome) < 2.6) & (self.cavity > 0) & (self.labels == 0), _MUSCLE, 6)
        self.fill((heart < 0) & (self.cavity > 0), 112, 7, organ="heart")
        chambers = (
            ((42, -40, 316), (32, 17, 17), -34.0, 18.0, 148.0),
            ((2, -58, 318), (30, 13, 20), -20.0, 15.0, 150.0),
            ((-18, -24, 326), (17, 20, 24), 0.0, 0.0, 143.0),
            ((14, -6, 334), (24, 13, 19), -10.0, 0.0, 152.0),
        )
        for centre, radii, turn, tip, hu in chambers:
            chamber = self.ellipsoid(centre, radii, turn, tip) + 1.2 * self.rough
            self.fill((chamber < 0) & (heart < -4), hu, 3)
        trunk = self.tube([(16, -44, 340), (14, -34, 362), (12, -22, 400)], [14, 14, 13])
        self.fill((trunk < 0) & (heart > -6) & (self.cavity > 0), 150, 4)
        upper = self.tube([(-20, -20, 340), (-22, -18, 400)], [10, 9])
        self.fill((upper < 0) & (heart > -6) & (self.cavity > 0), 146, 4)
        self.fill(self.tube([(3, 24, 215), (2, 22, 300), (0, 24, 390)], [8, 7, 7]) < 0, 52, 5)
        airway = self.tube([(0, 12, 352), (0, 12, 395)], [8, 8])
        for side in (-1, 1):
            airway = np.minimum(airway, self.tube([(0, 12, 352), (side * 34, 12, 334)], [7, 4.5]))
        self.fill(airway < 1.8, 30)
        self.fill(airway < 0, -985)

    def paint_bowel(self) -> None:
        """Loops of small bowel and the colon around them; they give way to every organ painted later."""
        room = (self.cavity > 3) & (self.z < 205) & (self.z > 24) & (self.y < 22) & (self.hu < 0)
        room &= self.z < self.dome - 4
        loops = self.noise(17) + 0.15 * self.rough
        self.fill(room & (loops > -0.05), 78, 6)
        self.fill(room & (loops > 0.30), 28, 9)
        self.fill(room & (loops > 0.75) & (self.rough > 0.6) & (self.y < -38), -900)
        colon = self.tube(
            [
                (-104, 14, 66),
                (-106, 18, 120),
                (-104, 14, 158),
                (-82, -42, 160),
                (-20, -72, 146),
                (45, -70, 156),
            ],
            [27, 25, 23, 21, 19, 19],
        )
        colon = np.minimum(
            colon,
            self.tube(
                [(45, -70, 156), (92, -34, 196), (112, 22, 204), (112, 26, 130), (104, 20, 84), (40, 12, 62)],
                [19, 19, 17, 16, 16, 16],
            ),
        )
        colon += 2.6 * self.rough + 2.2 * np.sin((self.z + self.x) / 5.5)
        place = (self.cavity > 1) & (self.labels == 0) & (self.hu < 300)
        self.fill((colon < 0) & place, 72, 6)
        stool = (colon < -3.5) & place
        self.fill(stool, 15)
        self.hu[stool] -= 110 * np.clip(self.fine[stool], 0, None)
        self.fill(stool & (self.y < -60 + 22 * self.rough), -920)

    def paint_abdomen(self) -> None:
        """The solid organs, the stomach, the gallbladder and the bladder, later ones on top."""
        under = np.maximum(self.z - self.dome + 3.5, 2.0 - self.cavity)
        free = (self.labels == 0) & (self.hu < 300)
        right = self.ellipsoid((-74, 2, 226), (72, 92, 84)) + 2.5 * self.rough
        left = self.ellipsoid((-8, -44, 246), (78, 44, 38), tip=-14) + 2.5 * self.rough
        slanted = 0.55 * (self.x + 60) - 0.35 * (self.y + 40) + (196 - self.z)
        liver = np.maximum(np.maximum(_joined(right, left, 18), 0.6 * (slanted - 26)), under)
        liver = np.maximum(liver, 48 - np.hypot(self.x, 1.1 * (self.y - 48)))
        first, second = self.noise(34), self.noise(34)
        stomach = self.tube(
            [(62, 10, 262), (72, -14, 240), (58, -46, 214), (18, -60, 196), (-18, -46, 200)],
            [35, 33, 26, 19, 11],
        )
        stomach = np.maximum(stomach + 1.8 * self.rough, under)
        spleen = self.ellipsoid((103, 38, 244), (30, 50, 50), turn=-24, tip=-14) + 2.0 * self.rough
        spleen = np.maximum(spleen, under)

        self.fill((liver < 0) & free, 108, 6, organ="liver")
        veins = (np.hypot(first, second) < 0.13) & (liver < -7) & free
        self.fill(veins, 150, 3)
        self.fill((spleen < 0) & free, 122, 5, organ="spleen")

        for side, organ in ((-1, "right kidney"), (1, "left kidney")):
            base = 198 + 8 * side
            kidney = self.ellipsoid((side * 66, 44, base), (29, 25, 55), turn=side * 35, tip=side * 10)
            kidney = kidney + 1.2 * self.rough
            sinus = self.ellipsoid((side * 49, 36, base), (21, 10, 27), turn=side * 35)
            # Fat keeps the kidney apart from its neighbours almost everywhere.
            self.erase((kidney < 1.5 + 2.5 * self.rough) & free)
            whole = (kidney < 0) & (sinus + 1.5 * self.rough > 0) & free
            self.fill(whole, 192, 6, organ=organ)
            pyramids = (kidney < -7) & (np.sin(self.z / 4.4) + 0.9 * self.rough > -0.1)
            self.fill(whole & pyramids, 148, 5)
            pelvis = self.ellipsoid((side * 47, 35, base), (13, 5, 15), turn=side * 35)
            self.fill((pelvis < 0) & free & ~whole, 12)
            adrenal = self.ellipsoid((side * 38, 34, base + 52), (16, 3.2, 12), turn=side * -40)
            self.fill((adrenal < 0) & (self.hu < 0) & free, 72, 5)

        pancreas = self.tube(
            [(-32, -12, 180), (-24, -18, 200), (6, -20, 208), (40, 0, 222), (78, 24, 232)],
            [15, 15, 10, 11, 9],
        )
        pancreas = pancreas + 2.2 * self.fine + 1.2 * self.rough
        keep = free & ~np.isin(self.labels, [_value("left kidney"), _value("right kidney"), _value("spleen")])
        self.fill((pancreas < 0) & keep, 92, 11, organ="pancreas")

        self.fill((stomach < 0) & keep, 80, 6, organ="stomach")
        lumen = (stomach < -5 - 1.2 * self.rough) & keep
        self.fill(lumen, 22)
        self.hu[lumen] += 22 * np.clip(self.rough[lumen], -1, 2)
        self.fill(lumen & (self.y < -44), -960)

        gallbladder = self.ellipsoid((-52, -56, 176), (15, 24, 21), tip=12) + 0.8 * self.rough
        self.fill((gallbladder < 0) & free & (self.cavity > 2), 60, organ="gallbladder")
        self.fill((gallbladder < -2.2) & free & (self.cavity > 2), 9)

        rectum = self.tube([(40, 12, 62), (6, 34, 66), (2, 36, 0)], [14, 15, 17]) + 1.6 * self.rough
        self.fill((rectum < 0) & free, 68, 5)
        self.fill((rectum < -5) & free, 10, 25)
        self.fill((rectum < -7) & free & (self.rough > 0.3), -900)
        bladder = self.ellipsoid((2, -30, 46), (45, 36, 32)) + 1.0 * self.rough
        self.fill((bladder < 0) & free & (self.cavity > 2), 48, 4, organ="urinary bladder")
        self.fill((bladder < -3.6) & free & (self.cavity > 2), 4)

    def paint_vessels(self) -> None:
        """Aorta and inferior vena cava with their branches."""
        front = self.labels != _value("spine")
        aorta = self.tube(
            [(22, 26, 392), (20, 24, 330), (14, 20, 262), (9, 12, 190), (5, 4, 128)],
            [13, 12.5, 11.5, 10, 8.5],
        )
        cava = self.tube(
            [(-14, 6, 122), (-19, 14, 190), (-23, 12, 240), (-20, -4, 284), (-18, -18, 312)],
            [10, 11, 12, 12, 12],
        )
        branches = [
            (([(9, 12, 196), (40, 26, 203), (55, 36, 205)]), 3.2, 160.0),
            (([(9, 12, 193), (-30, 24, 192), (-54, 36, 190)]), 3.2, 160.0),
            (([(-18, 14, 197), (14, 0, 200), (52, 33, 203)]), 4.2, 148.0),
            (([(-20, 12, 192), (-53, 32, 189)]), 4.6, 148.0),
            (([(11, 14, 214), (10, -2, 206), (4, -22, 150)]), 4.0, 162.0),
            (([(12, 16, 224), (10, -4, 226), (84, 26, 242)]), 3.4, 160.0),
            (([(-4, -26, 140), (-6, -12, 200), (-20, -10, 222), (-52, -6, 238), (-84, -4, 246)]), 6.5, 150.0),
            (([(-6, -10, 208), (40, 8, 224), (84, 28, 240)]), 4.6, 150.0),
        ]
        for path, radius, hu in branches:
            branch = self.tube(path, [radius] * len(path))
            self.fill((branch < 0) & front & (self.cavity > 0) & (self.hu > -600), hu, 3)
        for side in (-1, 1):
            for shift, hu in ((0.0, 160.0), (11.0, 145.0)):
                iliac = self.tube(
                    [
                        (5 - shift, 4 + shift / 2, 130),
                        (side * 30, 6 + shift, 88),
                        (side * 58, -28 + shift, 0),
                    ],
                    [7.5, 6.5, 6],
                )
                self.fill((iliac < 0) & front & (self.cavity > 0), hu, 3)
        place = front & (self.cavity > 0)
        self.fill((cava < 0) & place & (self.labels != _value("heart")), 143, 4, organ="inferior vena cava")
        self.fill((aorta < 0) & place, 158, 4, organ="aorta")

    def erase(self, region: Extent) -> None:
        """Turn a region back into fat that belongs to no organ."""
        self.hu[region] = _FAT + 7 * self.fine[region]
        self.labels[region] = 0

    def tidy(self) -> None:
        """Take the label off the crumbs that later paint cut from an organ."""
        for value in range(1, len(ORGANS) + 1):
            parts, count = ndimage.label(self.labels == value)
            if count > 1:
                sizes = np.bincount(parts.ravel())
                sizes[0] = 0
                self.labels[(parts > 0) & (parts != sizes.argmax())] = 0

    def scan(self) -> npt.NDArray[np.int16]:
        """What a scanner would make of it: blur, noise that grows with the tissue around, whole numbers."""
        seen = ndimage.gaussian_filter(self.hu, (0.35, 0.55, 0.55))
        grain = self.rng.standard_normal(SHAPE).astype(np.float32)
        grain = ndimage.gaussian_filter(grain, (0.3, 0.65, 0.65))
        grain /= grain.std()
        level = 5.5 + 7.5 * np.clip(self.depth / 100, 0, 1)
        return np.clip(np.rint(seen + level * grain), -1024, 3071).astype(np.int16)


def _joined(first: Values, second: Values, width: float) -> Values:
    """Union of two distances whose seam is rounded over ``width`` mm."""
    blend = np.clip(width - np.abs(first - second), 0, None) / width
    return np.minimum(first, second) - blend**2 * np.float32(width / 4)


def _value(organ: str) -> int:
    return ORGANS.index(organ) + 1
