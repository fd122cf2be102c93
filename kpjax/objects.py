"""What an object is, annotated or found: the record that all stages pass on, from the annotation file to the picture.

    Objects     annotated ones: boxes, labels, what training does with them, points and 3D where a data set has them
    Solid       of annotated ones, in 3D: depth, size and orientation
    Detections  found ones: boxes, labels, scores, points and 3D boxes where a detector finds them
    PointSet    what the points are called, which of them a mirror exchanges, and which are joined by lines
    Placed      how an image lies in the network's input
    Geometry    how pixels of an image become pixels of another one: scaled, moved, mirrored

A field that a data set or a method lacks is None, an empty subtree, so that `jax.vmap`, `jax.shard_map`,
`jax.device_get` and `jax.tree.map` need no branch.  The metadata of a field of coordinates says which kind it is
(`BOX`, `POINT`, `PER_POINT`); code that moves a record reads only that, so a new kind of field is one line here.

Shapes: M objects or N detections of an image, J points of an object, leading axes of a batch before them.  Boxes are
x1 y1 x2 y2 and points x y, both in pixels.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from kpjax.errors import ConfigError

Array = jax.Array
Record = TypeVar("Record")

NONE, OBJECT, IGNORE = 0, 1, 2  # roles: an empty slot; an object; a region that training ignores (crowd, DontCare)
UNLABELLED, HIDDEN, VISIBLE = 0, 1, 2  # COCO's visibility of a point
ALL_CLASSES = -1  # the label of a region to ignore that may hold objects of any class (KITTI's DontCare)

# The metadata of a field of coordinates, for `flax.struct.field`.
BOX = {"coordinates": "box"}  # (..., 4) x1 y1 x2 y2: two points; a mirror exchanges left and right
POINT = {"coordinates": "point"}  # (..., J, 2) x y, or more columns behind them; a mirror permutes the J points
PER_POINT = {"coordinates": "per point"}  # (..., J): one value a point, permuted with the points


@dataclasses.dataclass(frozen=True)
class PointSet:
    """The points of an object: static, of a data set and of a detector.

    names: J names, e.g. "left_shoulder".  mirror: (J,), which point of the original is point j of the mirror image.
    edges: pairs of points that are joined by a line, for pictures.  sigmas: (J,) constants of COCO's object
    keypoint similarity (OKS); empty: the metric's own.
    """

    names: tuple[str, ...]
    mirror: tuple[int, ...] = ()
    edges: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.names)
        if len(set(self.names)) < count:
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise ConfigError(f"the point {twice!r} is named twice; names have to differ")
        if not self.mirror:
            object.__setattr__(self, "mirror", mirror_by_names(self.names))
        if sorted(self.mirror) != list(range(count)) or any(self.mirror[k] != j for j, k in enumerate(self.mirror)):
            raise ConfigError(f"mirror is {self.mirror}; give for each of the {count} points its partner, or itself")
        for edge in self.edges:
            if len(edge) != 2 or not all(0 <= point < count for point in edge):
                raise ConfigError(f"the edge {edge} joins points that do not exist; there are {count}, from 0")
        if self.sigmas and len(self.sigmas) != count:
            raise ConfigError(f"{len(self.sigmas)} sigmas were given for {count} points; give one each")
        if not all(0 < sigma <= 1 for sigma in self.sigmas):
            raise ConfigError(f"the sigmas are {self.sigmas}; give numbers above 0 and at most 1")

    def __len__(self) -> int:
        return len(self.names)


_OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}
_SIDE_WORDS = re.compile(r"(?<![a-z])(?:left|right)(?![a-z])|^[lr](?=_)|(?<=_)[lr]$")
_SIDES = re.compile(r"left|right|^[lr](?=_)|(?<=_)[lr]$")  # parts of words too: "LeftEye"


def mirror_by_names(names: Sequence[str]) -> tuple[int, ...]:
    """The partner of each point in a mirror image, by "left" and "right" (or l and r) in their names; else itself.

    All sides in a name change at once: the left corner of the left eye becomes the right corner of the right one.
    """
    place = {name.casefold(): j for j, name in enumerate(names)}

    def partner(j: int, name: str) -> int:
        for sides in (_SIDE_WORDS, _SIDES):
            swapped = sides.sub(lambda match: _OTHER_SIDE[match[0]], name)
            if swapped != name and swapped in place:
                return place[swapped]
        return j

    found = [partner(j, name.casefold()) for j, name in enumerate(names)]
    return tuple(k if found[k] == j else j for j, k in enumerate(found))


def distinct_names(names: Mapping[int, str]) -> dict[int, str]:
    """Names of classes by their ids, made different where two share one: "other (id 1)" and "other (id 3)".

    COCO's categories are what their ids are.  Where names are keys, or are written beside numbers, two of one name
    would be taken for one.
    """
    found, counts = dict(names), Counter(names.values())
    while max(counts.values(), default=0) > 1:
        found = {k: f"{name} (id {k})" if counts[name] > 1 else name for k, name in found.items()}
        counts = Counter(found.values())
    return found


@flax.struct.dataclass
class Solid:
    """What 3D adds to an object.  depth: (..., M) metres along the camera's axis.  size: (..., M, 3) height, width,
    length in metres.  orientation: (..., M) radians, the angle at which the object is seen (KITTI's alpha).
    """

    depth: Any
    size: Any
    orientation: Any

    def mirrored(self, where: Any) -> Solid:
        """Of the mirror image where `where` (bool, of the leading axes) is true: an object is seen at pi - alpha."""
        turned = np.pi - self.orientation
        turned = jnp.where(turned > np.pi, turned - 2 * np.pi, turned)
        where = jnp.reshape(where, jnp.shape(where) + (1,) * (self.orientation.ndim - jnp.ndim(where)))
        return dataclasses.replace(self, orientation=jnp.where(where, turned, self.orientation))


@flax.struct.dataclass
class Objects:
    """Annotated objects of an image, or of a batch; slots without an object have the role NONE.

    boxes: (..., M, 4) float32.  labels: (..., M) int32, 0-based; ALL_CLASSES of some regions to ignore.  role:
    (..., M) int32, see NONE, OBJECT, IGNORE.
    points: (..., M, J, 2) float32 joints or other named points.  seen: (..., M, J) int32, see UNLABELLED, HIDDEN,
    VISIBLE.  solid: what is known in 3D.
    """

    boxes: Any = flax.struct.field(metadata=BOX)
    labels: Any = flax.struct.field()
    role: Any = flax.struct.field()
    points: Any = flax.struct.field(default=None, metadata=POINT)
    seen: Any = flax.struct.field(default=None, metadata=PER_POINT)
    solid: Solid | None = None

    def __len__(self) -> int:
        return self.labels.shape[-1]

    @property
    def valid(self) -> Any:
        """(..., M) bool: which slots hold an object to learn from."""
        return self.role == OBJECT


@flax.struct.dataclass
class Detections:
    """Objects found, best first.

    On the device (what `decode` returns) the arrays have fixed shapes with a leading batch axis.  Coordinates are in
    pixels of the network's input; a slot without a detection has the score 0.  What `Predictor` returns are NumPy
    arrays of one image, in that image's pixels, empty slots removed.

    boxes: (..., N, 4) float32.  scores: (..., N) float32.  labels: (..., N) int32, 0-based.  names: the class names
    that labels index; empty on the device.  keypoints: (..., N, J, 3) float32 x, y and score, of detectors that find
    points; else None.

    Of detectors of 3D boxes, else None: boxes3d (..., N, 7) float32 x, y, z, h, w, l, yaw, in metres and radians, in
    KITTI's frame: x right, y down, z forward; x, y, z is the middle of the box's bottom; yaw turns around y and is 0
    where the length lies along x, pi / 2 where it points to the camera (towards -z), in [-pi, pi].  alpha (..., N)
    float32 radians, the angle at which the object is seen, yaw - atan2(x, z) but for multiples of 2 pi.
    """

    boxes: Any = flax.struct.field(metadata=BOX)
    scores: Any = flax.struct.field()
    labels: Any = flax.struct.field()
    names: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())
    keypoints: Any = flax.struct.field(default=None, metadata=POINT)
    boxes3d: Any = None
    alpha: Any = None

    def __len__(self) -> int:
        return self.scores.shape[-1]


@flax.struct.dataclass
class Placed:
    """How an image lies in the network's input.

    size: (H, W) of the input, static.  window: (..., 4) top, left, bottom, right of the image in the input, in
    pixels; None: all of it.  changed: (...) bool, in training: whether the crop scaled or moved the image, so that
    sizes in metres no longer follow from it; None: it did not.

    For 3D: camera (..., 3, 4) float32, which projects metres to the image's own pixels.  zoom (...) float32 and shift
    (..., 2) float32 x y: a pixel p of the image lies at zoom * p + shift of the input.  None: not known.
    """

    size: tuple[int, int] = flax.struct.field(pytree_node=False)
    window: Any = None
    changed: Any = None
    camera: Any = None
    zoom: Any = None
    shift: Any = None


@flax.struct.dataclass
class Geometry:
    """How coordinates move from one image to another: x' = (x - source) * scale + target, an axis at a time.

    source, scale, target: (2,) float32 x y.  scale is negative in x where the image is mirrored.
    mirrored: () bool.  changed: () bool, see `Placed`.
    """

    source: Array
    scale: Array
    target: Array
    mirrored: Array
    changed: Array

    def move(self, record: Record, points: PointSet | None = None) -> Record:
        """The record (`Objects`, ...) with all its coordinates moved.  points: what its points are, for the mirror."""
        return in_mirror_order(map_coordinates(record, self.move_points), self.mirrored, points)

    def move_points(self, xy: Array) -> Array:
        """(..., 2) x y -> (..., 2)."""
        return (xy - self.source) * self.scale + self.target


def map_coordinates(record: Record, move: Callable[[Any], Any]) -> Record:
    """The record with `move` ((..., 2) x y -> (..., 2)) applied to every field of coordinates, NumPy or JAX."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(record):  # type: ignore[arg-type]
        kind, value = field.metadata.get("coordinates"), getattr(record, field.name)
        if value is not None and kind == POINT["coordinates"]:
            changes[field.name] = _moved(value, move)
        elif value is not None and kind == BOX["coordinates"]:
            changes[field.name] = move(value.reshape(*value.shape[:-1], 2, 2)).reshape(value.shape)
    return dataclasses.replace(record, **changes)  # type: ignore[type-var]


def move_ends(record: Record, pixels: float) -> Record:
    """The record with the right and bottom sides of its boxes moved: -1 makes a box end on its last pixel."""
    boxes = record.boxes + np.array([0, 0, pixels, pixels], np.float32)  # type: ignore[attr-defined]
    return dataclasses.replace(record, boxes=boxes)  # type: ignore[type-var]


def _moved(points: Any, move: Callable[[Any], Any]) -> Any:
    """Points (..., J, 2) moved; further columns, e.g. scores, stay."""
    xy = move(points[..., :2])
    if points.shape[-1] == 2:
        return xy
    join = np.concatenate if isinstance(xy, np.ndarray) else jnp.concatenate
    return join([xy, points[..., 2:]], axis=-1)


def in_mirror_order(record: Record, mirrored: Any, points: PointSet | None = None) -> Record:
    """Restore the order of coordinates after a mirror, where `mirrored` (() bool, or one a leading axis) is true.

    The left and right sides of boxes are exchanged, the points of each object permuted by `points.mirror`, and the
    angles turned at which objects are seen.  Raises
    ValueError where the record has another number of points, or has points and `points` is None.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(record):  # type: ignore[arg-type]
        kind, value = field.metadata.get("coordinates"), getattr(record, field.name)
        if value is None or kind is None:
            continue
        if kind == BOX["coordinates"]:
            swapped = value[..., np.array([2, 1, 0, 3])]
        else:
            axis = value.ndim - (2 if kind == POINT["coordinates"] else 1)
            if points is None or value.shape[axis] != len(points):
                known = "no point set says" if points is None else f"the point set of {len(points)} points cannot say"
                raise ValueError(
                    f"{field.name} has {value.shape[axis]} points, and {known} which of them change places"
                )
            swapped = value.take(np.array(points.mirror, np.int32), axis=axis)
        where = (
            mirrored
            if isinstance(mirrored, bool)
            else jnp.reshape(mirrored, jnp.shape(mirrored) + (1,) * (value.ndim - jnp.ndim(mirrored)))
        )
        changes[field.name] = jnp.where(where, swapped, value)
    solid = getattr(record, "solid", None)
    if solid is not None:
        changes["solid"] = solid.mirrored(mirrored)
    return dataclasses.replace(record, **changes)  # type: ignore[type-var]


def object_shapes(shape: tuple[int, ...], points: PointSet | None = None, solid: bool = False) -> Objects:
    """Shapes and dtypes of `Objects` with the leading axes `shape`, (..., M).  points, solid: what they have."""
    joints = None if points is None else (*shape, len(points))
    return Objects(
        boxes=jax.ShapeDtypeStruct((*shape, 4), np.float32),
        labels=jax.ShapeDtypeStruct(shape, np.int32),
        role=jax.ShapeDtypeStruct(shape, np.int32),
        points=None if joints is None else jax.ShapeDtypeStruct((*joints, 2), np.float32),
        seen=None if joints is None else jax.ShapeDtypeStruct(joints, np.int32),
        solid=None
        if not solid
        else Solid(
            depth=jax.ShapeDtypeStruct(shape, np.float32),
            size=jax.ShapeDtypeStruct((*shape, 3), np.float32),
            orientation=jax.ShapeDtypeStruct(shape, np.float32),
        ),
    )


def empty_objects(like: Objects, count: int) -> Objects:
    """`count` empty slots, NumPy zeros, of the fields that `like` has; leading axes are left out."""
    return jax.tree.map(lambda x: np.zeros((count, *x.shape[1:]), x.dtype), like)


def padded(objects: Objects, count: int) -> Objects:
    """One image's objects (NumPy) in exactly `count` slots: the first ones, then empty slots."""

    def pad(x: np.ndarray) -> np.ndarray:
        out = np.zeros((count, *x.shape[1:]), x.dtype)
        out[: min(len(x), count)] = x[:count]
        return out

    return jax.tree.map(pad, objects)
