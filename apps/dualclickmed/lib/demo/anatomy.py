"""The organs of the sample study, painted into a `Trunk` in order of priority."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .trunk import FAT, SPACING, Extent, Trunk, Values, value_of

_MUSCLE, _SKIN = 58.0, 20.0
"""Hounsfield units."""
_VERTEBRA = 36.0
"""Height of a vertebra with its disc."""


def paint_all(trunk: Trunk) -> None:
    """Paint every organ, later ones over earlier ones."""
    paint_wall(trunk)
    paint_skeleton(trunk)
    paint_chest(trunk)
    paint_bowel(trunk)
    paint_abdomen(trunk)
    paint_vessels(trunk)


def paint_wall(trunk: Trunk) -> None:
    """Skin, fat, the muscles of the trunk's wall, and the table."""
    trunk.fill((trunk.table > 0) & (trunk.table < 26), -930)
    trunk.fill((trunk.table > 0) & (trunk.table < 4), -110)
    trunk.fill((trunk.table > 22) & (trunk.table < 26), -110)
    body = trunk.depth > 0
    trunk.fill(body, FAT, 7)
    trunk.fill(body & (trunk.depth < 2.2), _SKIN)
    strands = np.abs(trunk.noise(14)) < 0.05
    trunk.fill(body & (trunk.depth > 4) & (trunk.cavity < -14) & strands, -50)
    muscle = (trunk.depth > trunk.wall) & (trunk.cavity < 0)
    trunk.fill(muscle, _MUSCLE, 9)
    layers = np.abs(trunk.cavity + 6 + 1.5 * trunk.rough) < 1.0
    trunk.fill(muscle & layers & (trunk.z < 215), -40)
    # The straight muscles of the belly leave a cord of fat between them.
    trunk.fill(muscle & (np.abs(trunk.x) < 2.5) & (trunk.y < 0) & (trunk.z < 260), -30)


def paint_skeleton(trunk: Trunk) -> None:
    """Spine with its muscles, ribs, breastbone and pelvis."""
    x, y, z = trunk.x, trunk.y, trunk.z
    back = y - 47 - 9 * np.sin((z - 60) / 62) - 0.0035 * np.maximum(95 - z, 0) ** 2
    for side in (-1, 1):
        erector = np.hypot((x - side * 31) / 27, (back - 30) / 21) - 1 + 0.08 * trunk.rough
        trunk.fill((erector < 0) & (trunk.depth > 12), _MUSCLE, 10)
        psoas = np.hypot((x - side * (30 + (215 - z) * 0.12)) / 19, (back + 2 + (215 - z) * 0.1) / 20) - 1
        trunk.fill((psoas + 0.05 * trunk.rough < 0) & (z < 215) & (trunk.cavity > -4), _MUSCLE, 9)
    level = np.mod(z, _VERTEBRA) - _VERTEBRA / 2
    width = 18.5 + 0.017 * (384 - z) + 0.010 * level**2
    body = (np.hypot(x / width, back / (0.76 * width)) - 1) * 20 + 0.6 * trunk.rough
    canal = (np.hypot(x / 11, (back - 26) / 9) - 1) * 9
    ring = (np.hypot(x / 17, (back - 26) / 15.5) - 1) * 15
    arch = (ring < 0) & (level > -13) & (level < 9)
    spinous = (np.abs(x) < 3.6) & (back > 36) & (back < 58) & (np.abs(level + 4 + 0.25 * (back - 40)) < 9)
    transverse = (np.abs(x) < 38) & (np.abs(back - 20) < 4.5) & (np.abs(level) < 5.5)
    disc = (np.abs(level) > _VERTEBRA / 2 - 4.2) & (body < 0)
    bone = (body < 0) | ((arch | spinous | transverse) & (canal > 0))
    bone &= trunk.depth > 6
    shell = ndimage.distance_transform_edt(bone & ~disc, sampling=SPACING).astype(np.float32)
    marrow = 185 + 45 * trunk.fine + 15 * trunk.rough
    trunk.fill(bone, 0, organ="spine")
    trunk.hu[bone] = np.where(shell < 3.1, 520, marrow)[bone]
    trunk.fill(disc & bone, 92, 6, organ="spine")
    trunk.fill((canal < 0) & (trunk.depth > 6), 15)
    trunk.fill((np.hypot(x / 6, (back - 26) / 5.5) < 1) & (z > 150), 42)

    frame = trunk.cavity + 5
    slope = z - 0.52 * y + 0.32 * np.abs(x)
    band = np.abs(np.mod(slope, 31) - 15.5)
    arc = z > 205 - 0.9 * y - 25 * (y > 30)
    front = y < -52
    rib = (np.hypot(frame, band * 0.72) < 4.3) & arc & (np.abs(x) > 16)
    trunk.fill(rib & ~front, 420)
    trunk.fill((np.hypot(frame, band * 0.72) < 2.0) & arc & ~front & (np.abs(x) > 16), 190, 25)
    trunk.fill(rib & front, 105, 12)
    sternum = (np.abs(frame) < 5.5) & (np.abs(x) < 17 + 0.05 * (z - 300)) & (y < 0) & (z > 268)
    trunk.fill(sternum, 330)
    trunk.fill(sternum & (np.abs(frame) < 3.2) & (np.abs(x) < 13), 140, 25)

    for side in (-1, 1):
        wing = trunk.ellipsoid((side * 62, 12, 78), (62, 74, 84), turn=side * 28)
        wing += 1.5 * trunk.rough
        part = (side * x > 38) & (y > -52 + 0.3 * (118 - z)) & (z < 124 - 0.004 * (y - 25) ** 2)
        gluteal = (wing > 0) & (wing < 30) & (side * x > 30) & (y > -20) & (z < 115) & (trunk.depth > 24)
        trunk.fill(gluteal, _MUSCLE, 12)
        iliacus = (wing < 0) & (wing > -13) & part & (z < 112)
        trunk.fill(iliacus & (trunk.hu < 0), _MUSCLE, 9)
        plate = np.abs(wing) - (4.2 + 3.0 * np.exp(-(((z - 45) / 30) ** 2)))
        trunk.fill((plate < 0) & part & (trunk.depth > 10), 480)
        trunk.fill((plate < -2.6) & part & (trunk.depth > 10), 210, 30)


def paint_chest(trunk: Trunk) -> None:
    """Lungs, heart and the great vessels' bed."""
    heart = trunk.ellipsoid((20, -34, 322), (58, 44, 42), turn=-28, tip=22) + 1.2 * trunk.rough
    heart = np.maximum(heart, trunk.dome + 3 - trunk.z)
    half = 24 + 10 * np.exp(-(((trunk.y - 45) / 22) ** 2)) + 6 * np.exp(-(((trunk.z - 384) / 40) ** 2))
    inside = (trunk.cavity > 1.5) & (trunk.z > trunk.dome + 2.5) & (np.abs(trunk.x - 2) > half)
    inside &= (heart > 4) & (trunk.labels == 0) & (trunk.hu < 0)
    first, second = trunk.noise(17), trunk.noise(17)
    for side, organ in ((-1, "right lung"), (1, "left lung")):
        lung = inside & (side * (trunk.x - 2) > 0)
        root = np.sqrt((trunk.x - side * 34) ** 2 + (trunk.y - 12) ** 2 + (trunk.z - 335) ** 2)
        tone = -868 + 26 * trunk.rough + 0.35 * (trunk.y + 60)
        trunk.fill(lung, 0, organ=organ)
        trunk.hu[lung] = tone[lung] + 14 * trunk.fine[lung]
        # Two smooth fields vanish together along curves: vessels, thicker near the root.
        thickness = 0.13 + 0.30 * np.exp(-root / 50)
        vessels = np.hypot(first, second) < thickness
        trunk.fill(lung & vessels, 45)
        trunk.fill(lung & (root < 17 + 3 * trunk.rough), 60)
    trunk.fill((np.abs(trunk.z - trunk.dome) < 2.6) & (trunk.cavity > 0) & (trunk.labels == 0), _MUSCLE, 6)
    trunk.fill((heart < 0) & (trunk.cavity > 0), 112, 7, organ="heart")
    chambers = (
        ((42, -40, 316), (32, 17, 17), -34.0, 18.0, 148.0),
        ((2, -58, 318), (30, 13, 20), -20.0, 15.0, 150.0),
        ((-18, -24, 326), (17, 20, 24), 0.0, 0.0, 143.0),
        ((14, -6, 334), (24, 13, 19), -10.0, 0.0, 152.0),
    )
    for centre, radii, turn, tip, hu in chambers:
        chamber = trunk.ellipsoid(centre, radii, turn, tip) + 1.2 * trunk.rough
        trunk.fill((chamber < 0) & (heart < -4), hu, 3)
    pulmonary = trunk.tube([(16, -44, 340), (14, -34, 362), (12, -22, 400)], [14, 14, 13])
    trunk.fill((pulmonary < 0) & (heart > -6) & (trunk.cavity > 0), 150, 4)
    upper = trunk.tube([(-20, -20, 340), (-22, -18, 400)], [10, 9])
    trunk.fill((upper < 0) & (heart > -6) & (trunk.cavity > 0), 146, 4)
    trunk.fill(trunk.tube([(3, 24, 215), (2, 22, 300), (0, 24, 390)], [8, 7, 7]) < 0, 52, 5)
    airway = trunk.tube([(0, 12, 352), (0, 12, 395)], [8, 8])
    for side in (-1, 1):
        airway = np.minimum(airway, trunk.tube([(0, 12, 352), (side * 34, 12, 334)], [7, 4.5]))
    trunk.fill(airway < 1.8, 30)
    trunk.fill(airway < 0, -985)


def paint_bowel(trunk: Trunk) -> None:
    """Loops of small bowel and the colon around them; every organ painted later covers them."""
    room = (trunk.cavity > 3) & (trunk.z < 205) & (trunk.z > 24) & (trunk.y < 22) & (trunk.hu < 0)
    room &= trunk.z < trunk.dome - 4
    loops = trunk.noise(17) + 0.15 * trunk.rough
    trunk.fill(room & (loops > -0.05), 78, 6)
    trunk.fill(room & (loops > 0.30), 28, 9)
    trunk.fill(room & (loops > 0.75) & (trunk.rough > 0.6) & (trunk.y < -38), -900)
    colon = trunk.tube(
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
        trunk.tube(
            [(45, -70, 156), (92, -34, 196), (112, 22, 204), (112, 26, 130), (104, 20, 84), (40, 12, 62)],
            [19, 19, 17, 16, 16, 16],
        ),
    )
    colon += 2.6 * trunk.rough + 2.2 * np.sin((trunk.z + trunk.x) / 5.5)
    place = (trunk.cavity > 1) & (trunk.labels == 0) & (trunk.hu < 300)
    trunk.fill((colon < 0) & place, 72, 6)
    stool = (colon < -3.5) & place
    trunk.fill(stool, 15)
    trunk.hu[stool] -= 110 * np.clip(trunk.fine[stool], 0, None)
    trunk.fill(stool & (trunk.y < -60 + 22 * trunk.rough), -920)


def paint_abdomen(trunk: Trunk) -> None:
    """The solid organs, the stomach, the gallbladder and the bladder, later ones on top."""
    under = np.maximum(trunk.z - trunk.dome + 3.5, 2.0 - trunk.cavity)
    free = (trunk.labels == 0) & (trunk.hu < 300)
    _paint_liver(trunk, under, free)
    _paint_spleen(trunk, under, free)
    for side in (-1, 1):
        _paint_kidney(trunk, side, free)
    firm = np.isin(trunk.labels, [value_of(organ) for organ in ("left kidney", "right kidney", "spleen")])
    _paint_pancreas(trunk, free & ~firm)
    _paint_stomach(trunk, under, free & ~firm)
    _paint_gallbladder(trunk, free)
    _paint_pelvic_organs(trunk, free)


def _paint_liver(trunk: Trunk, under: Values, free: Extent) -> None:
    right = trunk.ellipsoid((-74, 2, 226), (72, 92, 84)) + 2.5 * trunk.rough
    left = trunk.ellipsoid((-8, -44, 246), (78, 44, 38), tip=-14) + 2.5 * trunk.rough
    slanted = 0.55 * (trunk.x + 60) - 0.35 * (trunk.y + 40) + (196 - trunk.z)
    liver = np.maximum(np.maximum(_joined(right, left, 18), 0.6 * (slanted - 26)), under)
    liver = np.maximum(liver, 48 - np.hypot(trunk.x, 1.1 * (trunk.y - 48)))
    first, second = trunk.noise(34), trunk.noise(34)
    trunk.fill((liver < 0) & free, 108, 6, organ="liver")
    veins = (np.hypot(first, second) < 0.13) & (liver < -7) & free
    trunk.fill(veins, 150, 3)


def _paint_spleen(trunk: Trunk, under: Values, free: Extent) -> None:
    spleen = trunk.ellipsoid((103, 38, 244), (30, 50, 50), turn=-24, tip=-14) + 2.0 * trunk.rough
    spleen = np.maximum(spleen, under)
    trunk.fill((spleen < 0) & free, 122, 5, organ="spleen")


def _paint_kidney(trunk: Trunk, side: int, free: Extent) -> None:
    """A kidney with its collecting system and adrenal gland; side -1 is the right one."""
    organ = "right kidney" if side < 0 else "left kidney"
    base = 198 + 8 * side
    kidney = trunk.ellipsoid((side * 66, 44, base), (29, 25, 55), turn=side * 35, tip=side * 10)
    kidney = kidney + 1.2 * trunk.rough
    sinus = trunk.ellipsoid((side * 49, 36, base), (21, 10, 27), turn=side * 35)
    # Fat keeps the kidney apart from its neighbours almost everywhere.
    trunk.erase((kidney < 1.5 + 2.5 * trunk.rough) & free)
    whole = (kidney < 0) & (sinus + 1.5 * trunk.rough > 0) & free
    trunk.fill(whole, 192, 6, organ=organ)
    pyramids = (kidney < -7) & (np.sin(trunk.z / 4.4) + 0.9 * trunk.rough > -0.1)
    trunk.fill(whole & pyramids, 148, 5)
    pelvis = trunk.ellipsoid((side * 47, 35, base), (13, 5, 15), turn=side * 35)
    trunk.fill((pelvis < 0) & free & ~whole, 12)
    adrenal = trunk.ellipsoid((side * 38, 34, base + 52), (16, 3.2, 12), turn=side * -40)
    trunk.fill((adrenal < 0) & (trunk.hu < 0) & free, 72, 5)


def _paint_pancreas(trunk: Trunk, free: Extent) -> None:
    pancreas = trunk.tube(
        [(-32, -12, 180), (-24, -18, 200), (6, -20, 208), (40, 0, 222), (78, 24, 232)],
        [15, 15, 10, 11, 9],
    )
    pancreas = pancreas + 2.2 * trunk.fine + 1.2 * trunk.rough
    trunk.fill((pancreas < 0) & free, 92, 11, organ="pancreas")


def _paint_stomach(trunk: Trunk, under: Values, free: Extent) -> None:
    stomach = trunk.tube(
        [(62, 10, 262), (72, -14, 240), (58, -46, 214), (18, -60, 196), (-18, -46, 200)],
        [35, 33, 26, 19, 11],
    )
    stomach = np.maximum(stomach + 1.8 * trunk.rough, under)
    trunk.fill((stomach < 0) & free, 80, 6, organ="stomach")
    lumen = (stomach < -5 - 1.2 * trunk.rough) & free
    trunk.fill(lumen, 22)
    trunk.hu[lumen] += 22 * np.clip(trunk.rough[lumen], -1, 2)
    trunk.fill(lumen & (trunk.y < -44), -960)


def _paint_gallbladder(trunk: Trunk, free: Extent) -> None:
    gallbladder = trunk.ellipsoid((-52, -56, 176), (15, 24, 21), tip=12) + 0.8 * trunk.rough
    trunk.fill((gallbladder < 0) & free & (trunk.cavity > 2), 60, organ="gallbladder")
    trunk.fill((gallbladder < -2.2) & free & (trunk.cavity > 2), 9)


def _paint_pelvic_organs(trunk: Trunk, free: Extent) -> None:
    """Rectum and urinary bladder."""
    rectum = trunk.tube([(40, 12, 62), (6, 34, 66), (2, 36, 0)], [14, 15, 17]) + 1.6 * trunk.rough
    trunk.fill((rectum < 0) & free, 68, 5)
    trunk.fill((rectum < -5) & free, 10, 25)
    trunk.fill((rectum < -7) & free & (trunk.rough > 0.3), -900)
    bladder = trunk.ellipsoid((2, -30, 46), (45, 36, 32)) + 1.0 * trunk.rough
    trunk.fill((bladder < 0) & free & (trunk.cavity > 2), 48, 4, organ="urinary bladder")
    trunk.fill((bladder < -3.6) & free & (trunk.cavity > 2), 4)


def paint_vessels(trunk: Trunk) -> None:
    """Aorta and inferior vena cava with their branches."""
    front = trunk.labels != value_of("spine")
    aorta = trunk.tube(
        [(22, 26, 392), (20, 24, 330), (14, 20, 262), (9, 12, 190), (5, 4, 128)],
        [13, 12.5, 11.5, 10, 8.5],
    )
    cava = trunk.tube(
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
        branch = trunk.tube(path, [radius] * len(path))
        trunk.fill((branch < 0) & front & (trunk.cavity > 0) & (trunk.hu > -600), hu, 3)
    for side in (-1, 1):
        for shift, hu in ((0.0, 160.0), (11.0, 145.0)):
            iliac = trunk.tube(
                [
                    (5 - shift, 4 + shift / 2, 130),
                    (side * 30, 6 + shift, 88),
                    (side * 58, -28 + shift, 0),
                ],
                [7.5, 6.5, 6],
            )
            trunk.fill((iliac < 0) & front & (trunk.cavity > 0), hu, 3)
    place = front & (trunk.cavity > 0)
    trunk.fill((cava < 0) & place & (trunk.labels != value_of("heart")), 143, 4, organ="inferior vena cava")
    trunk.fill((aorta < 0) & place, 158, 4, organ="aorta")


def _joined(first: Values, second: Values, width: float) -> Values:
    """Union of two distances whose seam is rounded over ``width`` mm."""
    blend = np.clip(width - np.abs(first - second), 0, None) / width
    return np.minimum(first, second) - blend**2 * np.float32(width / 4)
