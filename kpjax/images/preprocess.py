"""How an image becomes the network's input, as values: channel order, mean, padding, border."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """How an image becomes the network's input, as values.

    order: "BGR" or "RGB", the channel order the network was trained with (images arrive as RGB).
    mean, std: of the channels in that order, of pixel values divided by 255.
    pad: the canvas of an image that keeps its resolution: side -> (side | pad) + 1 (`pad_plus_one`)
        or side | pad.
    border: what fills the canvas outside the image: 0 (black, before normalisation) or the mean.
    centred: the image lies in the middle of the canvas (the originals) or in its top left corner.
    fills: which side of an image fills the input's width at a fixed resolution: "longer", or always its "width";
        "both": width and height are stretched to the input's.
    one_canvas: (height, width) of the canvas of all images, the released programs' own, where these put images on one
        canvas by default; an image that keeps its resolution then lies in the canvas's middle, cut where it is larger,
        but on a padded canvas where `fills` is "both".  None: each image has a padded canvas of its own.
    """

    order: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pad: int = 31
    pad_plus_one: bool = True
    border: str = "black"
    centred: bool = True
    fills: str = "longer"
    one_canvas: tuple[int, int] | None = None

    def canvas(self, side: int) -> int:
        """The padded side of an image side, in pixels."""
        return (side | self.pad) + 1 if self.pad_plus_one else side | self.pad

    def normalise(self, images: Array) -> Array:
        """RGB pixels 0..255, (..., 3), any dtype -> the network's float32 input."""
        if self.order == "BGR":
            images = images[..., ::-1]
        mean, std = (jnp.asarray(values, jnp.float32) for values in (self.mean, self.std))

        def divide(images: Array) -> Array:
            return (images.astype(jnp.float32) / 255.0 - mean) / std

        def look_up(images: Array) -> Array:
            whole, levels = np.float32(255), np.arange(256, dtype=np.float32)[:, None]
            table = (levels / whole - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
            return jnp.take(table.T.reshape(-1), images.astype(jnp.int32) + 256 * jnp.arange(3), mode="clip")

        images = jnp.asarray(images)
        if images.dtype != jnp.uint8:
            return divide(images)
        # XLA divides by a constant by multiplying with its reciprocal.  Two values in three then differ from the
        # originals' in the last bit, and another of tied peaks may win: so a table, but not on a TPU (slow gathers).
        return jax.lax.platform_dependent(images, cpu=look_up, cuda=look_up, default=divide)

    def border_rgb(self) -> tuple[float, float, float]:
        """The border's colour in RGB pixel values (0..255)."""
        if self.border == "black":
            return (0.0, 0.0, 0.0)
        mean = self.mean[::-1] if self.order == "BGR" else self.mean
        return (255.0 * mean[0], 255.0 * mean[1], 255.0 * mean[2])


# xingyizhou's CenterNet, CornerNet and the triplet paper: statistics of COCO, in OpenCV's order.
COCO_BGR = Preprocess(
    order="BGR",
    mean=(0.40789654, 0.44719302, 0.47026115),
    std=(0.28863828, 0.27408164, 0.27809835),
)


# xingyizhou's 3D boxes: ImageNet's statistics in RGB order, applied to BGR images (golden: pipe_res18_ddd).
KITTI_BGR = Preprocess(
    order="BGR", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), fills="width", one_canvas=(384, 1280)
)


# mmdetection's CenterNet: statistics of ImageNet; the canvas is filled with black (golden: FACTS_centernet).
IMAGENET_RGB = Preprocess(
    order="RGB",
    mean=(123.675 / 255, 116.28 / 255, 103.53 / 255),
    std=(58.395 / 255, 57.12 / 255, 57.375 / 255),
    centred=True,
)
