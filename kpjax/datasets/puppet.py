"""An articulated puppet seen from the front: where its joints are, and the outlines of its parts.

A puppet always faces the viewer, so that its left side is on the right of the picture, as in a photograph.  Its two
sides look alike: which hand is the left one follows from the body that it hangs on, and a mirror image is again a
puppet that faces the viewer, with left and right exchanged.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

JOINTS = (
    "head",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_hand",
    "right_hand",
    "left_hip",
    "right_hip",
    "left_foot",
    "right_foot",
)
EDGES = (
    ("head", "left_shoulder"),
    ("head", "right_shoulder"),
    ("left_shoulder", "right_shoulder"),
    ("left_shoulder", "left_elbow"),
    ("right_shoulder", "right_elbow"),
    ("left_elbow", "left_hand"),
    ("right_elbow", "right_hand"),
    ("left_shoulder", "left_hip"),
    ("right_shoulder", "right_hip"),
    ("left_hip", "right_hip"),
    ("left_hip", "left_foot"),
    ("right_hip", "right_foot"),
)
MAX_LEAN = math.radians(20)  # of the whole puppet, to either side

# Limbs that can cover each other, and the clothes that a part shows.
BODY, LEFT_ARM, RIGHT_ARM, LEFT_LEG, RIGHT_LEG = range(5)
SHIRT, SLEEVES, TROUSERS, SKIN, SHOES, EYES = range(6)

# On which limbs a joint is seen; anything else over it hides it.
CARRIERS: dict[str, tuple[int, ...]] = {
    "head": (BODY,),
    "left_shoulder": (BODY, LEFT_ARM),
    "right_shoulder": (BODY, RIGHT_ARM),
    "left_elbow": (LEFT_ARM,),
    "right_elbow": (RIGHT_ARM,),
    "left_hand": (LEFT_ARM,),
    "right_hand": (RIGHT_ARM,),
    "left_hip": (BODY, LEFT_LEG),
    "right_hip": (BODY, RIGHT_LEG),
    "left_foot": (LEFT_LEG,),
    "right_foot": (RIGHT_LEG,),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """A part in one colour: the union of polygons (V, 2) float64.  limb: BODY, ...; look: SHIRT, ..."""

    limb: int
    look: int
    polygons: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Puppet:
    """joints: (J, 2) float64 x y, in the order of `JOINTS`.  parts: from the back to the front."""

    joints: np.ndarray
    parts: tuple[Part, ...]

    def extent(self) -> tuple[np.ndarray, np.ndarray]:
        """The least and the largest x y (2,) of all parts."""
        corners = np.concatenate([polygon for part in self.parts for polygon in part.polygons])
        return corners.min(0), corners.max(0)

    def moved(self, scale: float, offset: np.ndarray) -> Puppet:
        """The puppet with x y scaled, then moved by `offset` (2,)."""
        parts = (Part(p.limb, p.look, tuple(scale * q + offset for q in p.polygons)) for p in self.parts)
        return Puppet(scale * self.joints + offset, tuple(parts))


def random_puppet(rng: np.random.Generator) -> Puppet:
    """A puppet in a random pose and of random build, about 1 high; y runs down, 0 is between the hips."""
    stout, broad = rng.uniform(0.85, 1.25), rng.uniform(0.9, 1.15)
    upper, fore, leg = 0.175 * rng.uniform(0.9, 1.1), 0.17 * rng.uniform(0.9, 1.1), 0.44 * rng.uniform(0.92, 1.05)
    lean = rng.uniform(-MAX_LEAN, MAX_LEAN)
    turned = np.array([[math.cos(lean), math.sin(lean)], [-math.sin(lean), math.cos(lean)]])
    at: dict[str, np.ndarray] = {"head": np.array([rng.uniform(-0.03, 0.03), -0.42])}
    for side, sign in (("left", 1.0), ("right", -1.0)):
        raised, bend = math.radians(rng.uniform(-15, 155)), math.radians(rng.uniform(-105, 105))
        spread = math.radians(rng.uniform(-8, 38))
        at[f"{side}_shoulder"] = np.array([sign * 0.115 * broad, -0.285])
        at[f"{side}_elbow"] = at[f"{side}_shoulder"] + upper * _direction(raised, sign)
        at[f"{side}_hand"] = at[f"{side}_elbow"] + fore * _direction(raised + bend, sign)
        at[f"{side}_hip"] = np.array([sign * 0.07 * broad, 0.0])
        at[f"{side}_foot"] = at[f"{side}_hip"] + leg * _direction(spread, sign)
    arms = {side: _arm(at, side, stout) for side in ("left", "right")}
    legs = {side: _leg(at, side, stout) for side in ("left", "right")}
    order = ("left", "right") if rng.random() < 0.5 else ("right", "left")
    behind = {side: rng.random() < 0.12 for side in order}  # an arm behind the back
    parts = [part for side in order if behind[side] for part in arms[side]]
    parts += [part for side in order for part in legs[side]]
    parts += _body(at, stout)
    parts += [part for side in order if not behind[side] for part in arms[side]]
    return Puppet(
        joints=np.stack([at[name] for name in JOINTS]) @ turned,
        parts=tuple(Part(p.limb, p.look, tuple(q @ turned for q in p.polygons)) for p in parts),
    )


def _direction(angle: float, sign: float) -> np.ndarray:
    """0 points down, pi / 2 away from the body on the side of `sign`, pi up."""
    return np.array([sign * math.sin(angle), math.cos(angle)])


def _arm(at: dict[str, np.ndarray], side: str, stout: float) -> list[Part]:
    limb = LEFT_ARM if side == "left" else RIGHT_ARM
    shoulder, elbow, hand = (at[f"{side}_{name}"] for name in ("shoulder", "elbow", "hand"))
    sleeve = (
        _capsule(shoulder, elbow, 0.042 * stout, 0.036 * stout),
        _capsule(elbow, hand, 0.036 * stout, 0.03 * stout),
    )
    return [Part(limb, SLEEVES, sleeve), Part(limb, SKIN, (_capsule(hand, hand, 0.045, 0.045),))]


def _leg(at: dict[str, np.ndarray], side: str, stout: float) -> list[Part]:
    limb, outward = (LEFT_LEG, 0.04) if side == "left" else (RIGHT_LEG, -0.04)
    hip, foot = at[f"{side}_hip"], at[f"{side}_foot"]
    shoe = _capsule(foot, foot + np.array([outward, 0.01]), 0.045, 0.035)
    trousers = _capsule(hip, foot, 0.058 * stout, 0.038 * stout)
    return [Part(limb, TROUSERS, (trousers,)), Part(limb, SHOES, (shoe,))]


def _body(at: dict[str, np.ndarray], stout: float) -> list[Part]:
    left, right = at["left_shoulder"], at["right_shoulder"]
    left_hip, right_hip = at["left_hip"], at["right_hip"]
    head, r = at["head"], 0.045 * stout
    corners = ((left, right), (right, right_hip), (right_hip, left_hip), (left_hip, left))
    torso = (np.stack([left, right, right_hip, left_hip]), *(_capsule(a, b, r, r) for a, b in corners))
    face = (_capsule(head, (left + right) / 2 - (0.0, 0.03), 0.035, 0.035), _capsule(head, head, 0.09, 0.09))
    eyes = tuple(_capsule(eye, eye, 0.016, 0.016) for eye in (head + np.array([x, -0.015]) for x in (-0.035, 0.035)))
    return [Part(BODY, SHIRT, torso), Part(BODY, SKIN, face), Part(BODY, EYES, eyes)]


def _capsule(a: np.ndarray, b: np.ndarray, radius_a: float, radius_b: float, corners: int = 12) -> np.ndarray:
    """A polygon around the way from a to b, round at both ends; a circle where they are one point."""
    x, y = b - a
    along = math.atan2(y, x)
    half = np.linspace(math.pi / 2, 3 * math.pi / 2, corners)
    ends = ((a, radius_a, along + half), (b, radius_b, along + half + math.pi))
    return np.concatenate([p + r * np.stack([np.cos(t), np.sin(t)], axis=1) for p, r, t in ends])
