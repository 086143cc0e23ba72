"""Painters of the built-in scenes: one function a class, texture for stuff and shape for things.

Stuff painters return an (H, W, 3) texture, thing painters an (S, S, 4) patch whose last channel is the coverage in
[0, 1]; both are float32 RGB in 0...255. Colors come from one shared set of tones, each class only leaning to its own,
so that color alone does not tell a class; texture (stuff) and shape (things) do.

Shapes are signed distances on a grid (u, v) in units of the radius, positive inside, y downwards; coverage is the
distance in pixels clipped to [0, 1], which gives smooth edges at any size.
"""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["STUFF", "THINGS", "blend", "noise", "paint_stuff", "paint_thing", "ramp"]

Rng = np.random.Generator
Shape = tuple[int, int]

TONES = {
    "blue": (92, 148, 208),
    "teal": (62, 128, 132),
    "pale": (184, 200, 214),
    "slate": (92, 104, 122),
    "gray": (136, 134, 130),
    "dusk": (142, 112, 150),
    "coral": (216, 132, 104),
    "rust": (158, 84, 62),
    "brown": (118, 92, 70),
    "tan": (206, 176, 130),
    "straw": (190, 172, 98),
    "olive": (126, 134, 70),
    "green": (86, 138, 66),
}
LEANINGS = {
    "sky": ("blue", "pale", "coral"),
    "grass": ("green", "olive"),
    "water": ("blue", "teal", "slate"),
    "sand": ("tan", "straw"),
    "brick": ("rust", "brown", "tan"),
    "road": ("gray", "slate", "dusk"),
}
HUES = {"ball": 5, "box": 215, "star": 50, "ring": 275, "fish": 170}
"""The hue, in degrees, that each thing leans to; trees lean to the tones of leaves."""
LEAN = 0.95
"""The probability that a class takes one of its typical colors, and not any color."""


def ramp(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """Smooth step from 0 at ``low`` to 1 at ``high``."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def blend(below: np.ndarray, above: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """``above`` over ``below``, both (..., 3) or (3,), with an (H, W) coverage in [0, 1]."""
    return below + (above - below) * coverage[..., None]


def noise(rng: Rng, shape: Shape, cell: float, stretch: float = 1.0, octaves: int = 3) -> np.ndarray:
    """Smooth noise (H, W) in [0, 1]: blobs ``cell`` pixels high and ``cell * stretch`` wide, finer ones added."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        high, wide = max(cell / 2**octave, 1.0), max(cell * stretch / 2**octave, 1.0)
        grid = rng.random((int(shape[0] / high) + 3, int(shape[1] / wide) + 3), dtype=np.float32)
        size = (round(grid.shape[1] * wide), round(grid.shape[0] * high))
        smooth = cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC)
        total += smooth[int(high) :, int(wide) :][: shape[0], : shape[1]] / 2**octave
    return np.clip(total / (2 - 2 ** (1 - octaves)), 0, 1)


def _grid(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return y, x


def _tone(rng: Rng, leaning: tuple[str, ...]) -> np.ndarray:
    names = leaning if rng.random() < LEAN else tuple(TONES)
    color = np.array(TONES[names[rng.integers(len(names))]], np.float32)
    return np.clip(color * rng.uniform(0.85, 1.12) + rng.normal(0, 7, 3), 20, 240).astype(np.float32)


def _sky(rng: Rng, shape: Shape, color: np.ndarray, zoom: float) -> np.ndarray:
    """A vertical gradient under soft, wide clouds."""
    y, _ = _grid(shape)
    light = color + (255 - color) * rng.uniform(0.35, 0.75)
    sky = blend(color, light, (y / shape[0]) ** rng.uniform(0.7, 1.5))
    clouds = ramp(0.5, 0.75, noise(rng, shape, 12 * zoom, stretch=2.6, octaves=4))
    return blend(sky, np.float32(rng.uniform(215, 255)) * np.ones(3, np.float32), clouds * rng.uniform(0.4, 0.9))


def _grass(rng: Rng, shape: Shape, color: np.ndarray, zoom: float) -> np.ndarray:
    """Mottled ground under short, nearly upright blades in four shades."""
    canvas = np.clip(color * (0.6 + 0.5 * noise(rng, shape, 16 * zoom))[..., None], 0, 255).astype(np.uint8)
    blades = int(shape[0] * shape[1] / (16 * zoom**2))
    lean = rng.normal(0, 1.0)
    for shade in (0.6, 0.85, 1.15, 1.45):
        roots = rng.random((blades // 4, 2)) * (shape[1] + 8, shape[0] + 12)
        tips = roots + np.stack([rng.normal(lean, 1.2, blades // 4), -rng.uniform(4, 9, blades // 4)], 1) * zoom
        lines = np.round(np.stack([roots, tips], 1) * 16).astype(np.int32)
        tint = tuple(float(x) for x in np.clip(color * shade, 0, 255))
        cv2.polylines(canvas, list(lines), False, tint, 1, cv2.LINE_AA, shift=4)
    return canvas.astype(np.float32)


def _water(rng: Rng, shape: Shape, color: np.ndarray, zoom: float) -> np.ndarray:
    """Horizontal ripples that widen downwards, with broken glints on their crests."""
    y, _ = _grid(shape)
    near = y / shape[0] + rng.uniform(0.5, 1.5)
    bend = noise(rng, shape, 9 * zoom, stretch=4) * 7
    wave = np.sin(2 * np.pi * shape[0] / (7.5 * zoom) * np.log(near) + bend)
    glint = ramp(0.55, 1.0, wave * (0.35 + noise(rng, shape, 3 * zoom, stretch=4, octaves=2)))
    water = color * (0.85 + 0.22 * wave)[..., None]
    return blend(water, color * 0.3 + 178, glint * rng.uniform(0.6, 1))


def _sand(rng: Rng, shape: Shape, color: np.ndarray, zoom: float) -> np.ndarray:
    """Fine grain over faint, curved dune ripples."""
    y, x = _grid(shape)
    angle = rng.uniform(0, np.pi)
    along = (x * np.cos(angle) + y * np.sin(angle)) / (15 * zoom)
    dunes = np.sin(2 * np.pi * along + 7 * noise(rng, shape, 26 * zoom, octaves=2))
    grain = rng.normal(0, 1, shape).astype(np.float32)
    specks = rng.random(shape) < 0.03
    return color * (rng.uniform(0.65, 1.05) + 0.1 * dunes + 0.11 * grain - 0.3 * specks)[..., None]


def _brick(rng: Rng, shape: Shape, color: np.ndarray, zoom: float) -> np.ndarray:
    """Courses of bricks, each of its own shade, between mortar joints."""
    y, x = _grid(shape)
    tilt = np.deg2rad(rng.normal(0, 4))
    high, wide = rng.uniform(7, 10) * zoom, rng.uniform(16, 24) * zoom
    v = (y * np.cos(tilt) - x * np.sin(tilt)) / high + rng.uniform(8, 12)
    u = (x * np.cos(tilt) + y * np.sin(tilt)) / wide + rng.uniform(8, 12) + 0.5 * (np.floor(v) % 2)
    shades = rng.normal(1, rng.uniform(0.06, 0.16), (64, 64)).astype(np.float32)
    bricks = color * (shades[np.int32(v) % 64, np.int32(u) % 64] * (0.85 + 0.3 * noise(rng, shape, 4)))[..., None]
    joint = np.minimum(np.minimum(v % 1, 1 - v % 1) * high, np.minimum(u % 1, 1 - u % 1) * wide)
    mortar = color * 0.25 + 255 * rng.uniform(0.1, 0.65)
    return blend(mortar, bricks, ramp(0.4, 1.4, joint))


def _road(rng: Rng, shape: Shape, color: np.ndarray, zoom: float) -> np.ndarray:
    """Asphalt: coarse bright and dark aggregate, cracks, and now and then a dashed marking."""
    y, x = _grid(shape)
    stones = cv2.GaussianBlur(rng.normal(0, 1, shape).astype(np.float32), (0, 0), 0.9 * zoom) * 3.2 * zoom
    color = (color + color.mean()) / 2 * rng.uniform(0.6, 1.25)
    road = color * (1 + 0.45 * ramp(0.8, 1.8, stones) - 0.4 * ramp(0.8, 1.8, -stones))[..., None]
    canvas = np.clip(road, 0, 255).astype(np.uint8)
    for _ in range(rng.integers(1, 4)):
        steps = rng.normal(rng.normal(0, 4, 2), 3, (14, 2)) * zoom
        crack = rng.random(2) * (shape[1], shape[0]) + np.cumsum(steps, 0)
        cv2.polylines(canvas, [np.int32(crack * 16)], False, tuple((color * 0.45).tolist()), 1, cv2.LINE_AA, shift=4)
    if rng.random() < 0.55:
        angle = rng.uniform(-0.6, 0.6)
        across = (x - rng.uniform(0.2, 0.8) * shape[1]) * np.cos(angle) + (y - shape[0] / 2) * np.sin(angle)
        along = (y * np.cos(angle) - x * np.sin(angle)) / (11 * zoom) + rng.random()
        dash = np.clip(rng.uniform(1.5, 2.5) * zoom - np.abs(across) + 0.5, 0, 1) * ramp(
            -0.2, 0.2, np.sin(np.pi * along)
        )
        paint = np.array((238, 232, 214) if rng.random() < 0.6 else (226, 186, 74), np.float32)
        return blend(canvas.astype(np.float32), paint, dash * 0.85)
    return canvas.astype(np.float32)


def paint_stuff(rng: Rng, name: str, shape: Shape) -> np.ndarray:
    """Return a texture (H, W, 3) of the stuff class ``name``."""
    return STUFF[name](rng, shape, _tone(rng, LEANINGS[name]), rng.uniform(0.75, 1.4))


def _vivid(rng: Rng, hue: float) -> np.ndarray:
    hue = rng.normal(hue, 13) % 360 if rng.random() < LEAN else rng.uniform(0, 360)
    hsv = np.float32([[[hue, rng.uniform(0.5, 0.95), rng.uniform(0.55, 0.98)]]])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255


def _pair(rng: Rng, hue: float) -> tuple[np.ndarray, np.ndarray]:
    """Two colors that differ clearly in brightness, so that a pattern of them shows."""
    first = _vivid(rng, hue)
    second = _vivid(rng, hue) * 0.4 + (150 if first.mean() < 128 else 10)
    return (first, second) if rng.random() < 0.5 else (second, first)


def _convex(u: np.ndarray, v: np.ndarray, points: list[tuple[float, float]]) -> np.ndarray:
    """Distance inside a convex polygon given clockwise on screen (y downwards)."""
    inside = np.full_like(u, np.inf)
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        cross = (x1 - x0) * (v - y0) - (y1 - y0) * (u - x0)
        inside = np.minimum(inside, cross / np.hypot(x1 - x0, y1 - y0))
    return inside


def _ball(rng: Rng, u: np.ndarray, v: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """A shaded sphere with a beach-ball, band or dot pattern turned at random."""
    z = np.sqrt(np.clip(1 - u * u - v * v, 0, 1))
    a, b = rng.uniform(0, 2 * np.pi, 2)
    x, z_turned = u * np.cos(a) + z * np.sin(a), z * np.cos(a) - u * np.sin(a)
    y, x = v * np.cos(b) + x * np.sin(b), x * np.cos(b) - v * np.sin(b)
    first, second = _pair(rng, HUES["ball"])
    style = rng.integers(3)
    if style == 0:
        pattern = np.sin(rng.integers(2, 4) * np.arctan2(y, x)) > 0
    elif style == 1:
        pattern = np.abs(z_turned) < rng.uniform(0.2, 0.4)
    else:
        pattern = np.cos(5 * x) * np.cos(5 * y) > 0.3
    light = np.clip(-0.45 * u - 0.6 * v + 0.66 * z, 0, 1)
    color = np.where(pattern[..., None], first, second) * (0.45 + 0.7 * light)[..., None]
    return 1 - np.hypot(u, v), color + 150 * (light**22)[..., None]


def _box(rng: Rng, u: np.ndarray, v: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """A cuboid of three differently lit faces, with a ribbon or planks on the front."""
    v = v * rng.uniform(1.0, 1.3)
    u = u if rng.random() < 0.5 else -u
    front = _convex(u, v, [(-0.85, -0.35), (0.4, -0.35), (0.4, 0.85), (-0.85, 0.85)])
    top = _convex(u, v, [(-0.85, -0.35), (-0.45, -0.75), (0.8, -0.75), (0.4, -0.35)])
    side = _convex(u, v, [(0.4, -0.35), (0.8, -0.75), (0.8, 0.45), (0.4, 0.85)])
    first, second = _pair(rng, HUES["box"])
    if rng.random() < 0.5:
        slant = np.where(top > front, (v + 0.35), 0)
        pattern = (np.abs(u + 0.22 + slant) < 0.13) | ((np.abs(v - 0.25) < 0.13) & (front > 0))
    else:
        first = second * 0.72
        pattern = ((v + 0.35) % 0.3 < 0.07) & (front > 0)
    face = np.argmax(np.stack([front, top, side]), 0)
    color = np.where(pattern[..., None] & (face != 2)[..., None], first, second)
    inside = np.maximum(np.maximum(front, top), side)
    outline = 0.78 + 0.22 * ramp(0.0, 1.5 / radius, np.max(np.stack([front, top, side]), 0))
    return inside, color * (np.float32([0.95, 1.2, 0.62])[face] * outline)[..., None]


def _tree(rng: Rng, u: np.ndarray, v: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """A trunk under a leafy crown: blobs, or the three tiers of a conifer."""
    half = rng.uniform(0.08, 0.15)
    trunk = _convex(u, v, [(-half, 0), (half, 0), (half * 1.4, 1), (-half * 1.4, 1)])
    if rng.random() < 0.5:
        crown = 0.45 - np.hypot(u, v + 0.35)
        for angle in np.arange(6) * np.pi / 3 + rng.uniform(0, 1):
            size = rng.uniform(0.26, 0.4)
            crown = np.maximum(crown, size - np.hypot(u - 0.42 * np.cos(angle), v + 0.35 - 0.36 * np.sin(angle)))
    else:
        wide = rng.uniform(0.55, 0.75)
        tiers = [(-0.98, -0.3, 0.6), (-0.65, 0.1, 0.8), (-0.3, 0.55, 1.0)]
        crown = np.maximum.reduce([_convex(u, v, [(0, t), (s * wide, b), (-s * wide, b)]) for t, b, s in tiers])
    crown = crown + 0.1 * (noise(rng, u.shape, max(radius / 6, 2), octaves=2) - 0.6)
    leaves = ramp(0.3, 0.7, noise(rng, u.shape, max(radius / 5, 3), octaves=2))
    color = _tone(rng, ("green", "teal", "rust")) * (0.3 + 0.6 * leaves - 0.22 * (u + v))[..., None]
    bark = _tone(rng, ("brown", "slate", "tan")) * (0.6 - 1.5 * u[..., None])
    return np.maximum(trunk, crown), np.where((crown > 0)[..., None], color, bark)


def _star(rng: Rng, u: np.ndarray, v: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """A beveled star of five or six points, its facets lit from one side."""
    half = np.pi / rng.integers(5, 7)
    inner = rng.uniform(0.4, 0.52)
    theta = np.arctan2(v, u)
    fold = (theta + half) % (2 * half) - half
    x, y = np.hypot(u, v) * np.cos(np.abs(fold)), np.hypot(u, v) * np.sin(np.abs(fold))
    edge_x, edge_y = inner * np.cos(half) - 1, inner * np.sin(half)
    inside = (edge_y * (1 - x) + edge_x * y) / np.hypot(edge_x, edge_y)
    normal = np.round((theta - fold) / (2 * half)) * 2 * half + np.sign(fold) * half
    return inside, _vivid(rng, HUES["star"]) * (0.85 + 0.4 * np.cos(normal - rng.uniform(0, 2 * np.pi)))[..., None]


def _ring(rng: Rng, u: np.ndarray, v: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """A tube ring, round or seen at an angle, plain or in segments like a lifebuoy; its hole is open."""
    squash = rng.uniform(0.7, 1.0)
    v = v / squash
    tube = rng.uniform(0.2, 0.27)
    across = (np.hypot(u, v) - (0.98 - tube)) / tube
    first, second = _pair(rng, HUES["ring"])
    turns = rng.choice([0, 2, 3, 4])
    pattern = np.sin(turns * np.arctan2(v, u) + rng.uniform(0, 6)) > 0
    round_off = np.sqrt(np.clip(1 - across**2, 0, 1))
    light = 0.4 + 0.6 * round_off - 0.25 * across * (u + v) / np.maximum(np.hypot(u, v), 0.1)
    return (1 - np.abs(across)) * tube * squash, np.where(pattern[..., None], first, second) * light[..., None]


def _fish(rng: Rng, u: np.ndarray, v: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """A fish with forked tail, fins, eye, and scales or stripes."""
    u = u if rng.random() < 0.5 else -u
    depth = rng.uniform(0.36, 0.5)
    body = (1 - np.hypot((u + 0.22) / 0.74, v / depth)) * depth
    upper = _convex(u, v, [(0.35, 0.0), (0.95, -0.5), (0.8, 0.0)])
    lower = _convex(u, v, [(0.35, 0.0), (0.8, 0.0), (0.95, 0.5)])
    fin = _convex(u, v, [(-0.35, -depth * 0.8), (0.05, -depth - 0.22), (0.25, -depth * 0.5)])
    first, second = _pair(rng, HUES["fish"])
    if rng.random() < 0.5:
        pattern = (np.sin(14 * u) > 0.2) & (u > -0.55)
    else:
        row = np.floor(v * 7)
        pattern = np.hypot((u * 6 + 0.5 * (row % 2)) % 1 - 0.2, v * 7 - row - 0.5) > 0.62
    color = np.where((pattern & (body > 0))[..., None], second * 0.5 + first * 0.5, first) * (1 - 0.45 * v)[..., None]
    color = np.where(((body < 0) & (np.maximum(np.maximum(upper, lower), fin) > body))[..., None], second * 0.85, color)
    eye = np.hypot(u + 0.62, v + 0.1)
    color = np.where((eye < 0.13)[..., None], np.float32(245), color)
    color = np.where((eye < 0.07)[..., None], np.float32(20), color)
    return np.maximum(np.maximum(body, fin), np.maximum(upper, lower)), color


STUFF = {"sky": _sky, "grass": _grass, "water": _water, "sand": _sand, "brick": _brick, "road": _road}
THINGS = {"ball": _ball, "box": _box, "tree": _tree, "star": _star, "ring": _ring, "fish": _fish}
TILTS = {"ball": 0.0, "box": 0.15, "tree": 0.08, "star": np.pi, "ring": np.pi, "fish": 0.6}
"""The largest rotation of each thing either way, in radians."""


def paint_thing(rng: Rng, name: str, radius: float) -> np.ndarray:
    """Return a patch (S, S, 4) of the thing class ``name``, centered, about ``radius`` pixels to each side."""
    reach = int(np.ceil(radius * 1.1)) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32) / np.float32(radius)
    turn = rng.uniform(-1, 1) * TILTS[name]
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    inside, color = THINGS[name](rng, u, v, radius)
    coverage = np.clip(inside * radius + 0.5, 0, 1)
    return np.dstack([np.clip(color, 0, 255), coverage]).astype(np.float32)
