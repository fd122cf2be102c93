"""CornerNet's and the triplets' losses, and mmdetection's CornerHead: values and gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kpjax
from kpjax.ops import losses

from .cases import companion, each_case, fill, kind_of, nhwc
from .test_mmdet_losses import leaf
from .test_mmdet_targets import image_boxes, mmdet_targets

KEYPOINTS = {"tl": "tl", "br": "br", "ct": "center"}


MODELS = {
    "loss_cornernet": "cornernet_hg104",
    "loss_cornernet_lite_squeeze": "cornernet_squeeze",
    "loss_centernet_triplet": "triplet_hg52",
}


def has_maps(case: Any) -> bool:
    """Whether the original's loss reads embeddings and offsets from maps, as CornerNet-Lite's does."""
    return any("_off_" in name for name in case.arrays)


def predictions(case: Any, example: str) -> dict[str, np.ndarray]:
    """The reference's inputs by name ("s0_heat_tl"); embeddings and offsets ("regr") come one row an object, those of
    CornerNet-Lite ("off") as maps.
    """
    lite = has_maps(case)
    shape = [case.info["dims"][key] for key in ("B", "C", "H", "W")]
    slots = case.info["dims"]["max_objects"]
    found = {}
    for name in [n for n in case.arrays if n.startswith(f"{example}/grad/")]:
        key = name.rsplit("/", 1)[1]
        stack, kind, corner = key.split("_")
        size, low, high = {
            "heat": (shape, -11, 5),
            "tag": ([shape[0], 1, *shape[2:]] if lite else [shape[0], slots, 1], -1.5, 1.5),
            "regr": ([shape[0], slots, 2], -2, 2.5),
            "off": ([shape[0], 2, *shape[2:]], -2, 2.5),
        }[kind]
        found[key] = fill(f"{case.info['case']}/{example}/{stack}/{kind}_{corner}", size, low, high)
    return found


def outputs_of(found: dict[str, Any], stacks: int) -> list[dict[str, Any]]:
    """Our head maps (NHWC).  Rows of objects become a map of one row of cells, in which object m lies in cell m."""
    kinds = {"heat": "heat", "tag": "tag", "regr": "off", "off": "off"}
    outputs: list[dict[str, Any]] = [{} for _ in range(stacks)]
    for key, value in found.items():
        stack, kind, corner = key.split("_")
        maps = jnp.moveaxis(value, 1, -1) if value.ndim == 4 else value[:, None]
        outputs[int(stack[1:])][f"{KEYPOINTS[corner]}_{kinds[kind]}"] = maps
    return outputs


@each_case(*MODELS)
def test_losses(case: Any) -> None:
    """Values to 2e-5, gradients to 1e-5 of each one's largest value."""
    dims = case.info["dims"]
    det = kpjax.build(MODELS[kind_of(case.path.name) or ""], num_classes=dims["C"])
    for example in case.info["examples"]:
        mask = jnp.asarray(case[f"{example}/target/mask"] > 0)
        targets: dict[str, Any] = {"mask": mask}
        for corner in case.info["corners"]:
            name = KEYPOINTS[corner]
            rows = jnp.broadcast_to(jnp.arange(mask.shape[1], dtype=jnp.int32), mask.shape)
            cells = case[f"{example}/target/ind_{corner}"] if has_maps(case) else None
            targets |= {
                f"{name}_heat": jnp.asarray(nhwc(case[f"{example}/target/heat_{corner}"])),
                f"{name}_index": rows if cells is None else jnp.asarray(cells, jnp.int32),
                f"{name}_mask": mask,
                f"{name}_off": jnp.asarray(case[f"{example}/target/regr_{corner}"]),
            }
        counts = det.normaliser(targets)

        def total(found: Any, targets: Any = targets, counts: Any = counts) -> Any:
            return det.loss(outputs_of(found, dims["stacks"]), targets, counts)

        found = predictions(case, example)
        (value, parts), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(found)
        np.testing.assert_allclose(value, case[f"{example}/value/loss"].item(), rtol=2e-5, err_msg=example)
        if dims["stacks"] == 1:  # the stored parts are those of the first stack
            stored = {n.rsplit("/", 1)[1]: case[n].item() for n in case.arrays if n.startswith(f"{example}/value/")}
            sums = {
                "pull": stored["ae_pull_s0"],
                "push": stored["ae_push_s0"],
                "heatmap": sum(v for k, v in stored.items() if k.startswith("focal_")),
                "offset": sum(v for k, v in stored.items() if k.startswith("regr_")),
            }
            for key, expected in sums.items():
                np.testing.assert_allclose(parts[key], expected, rtol=2e-5, err_msg=f"{example} {key}")
        for key, slope in slopes.items():
            expected = case[f"{example}/grad/{key}"]
            limit = max(1e-5 * np.abs(expected).max(), 1e-8)
            np.testing.assert_allclose(slope, expected, atol=limit, err_msg=f"{example} {key}")


@each_case("fn_mmdet_losses")
def test_corner_head(case: Any) -> None:
    boxes = companion(case, "fn_mmdet_targets")
    ours = {"heat": "heat", "emb": "tag", "off": "off"}
    leaves = {n: leaf(case, n) for n in case.info["details"]["tags"] if n.startswith("co_")}
    stacks = 1 + max(int(n[-1]) for n in leaves)
    images, height, width, classes = leaves["co_tl_heat0"].shape
    det = kpjax.build("cornernet_hg104_mmdet", num_classes=classes)
    names = [n.split("/")[0] for n in case.arrays if n.endswith("/det_loss")]
    assert names
    for name in names:
        size = (height * det.stride, width * det.stride)
        targets = mmdet_targets(det, image_boxes(boxes, name, images), size)
        counts = det.normaliser(targets)

        def outputs(found: dict[str, Any]) -> list[dict[str, Any]]:
            return [
                {f"{side}_{ours[k]}": found[f"co_{side}_{k}{i}"] for side in ("tl", "br") for k in ours}
                for i in range(stacks)
            ]

        def total(found: Any, targets: Any = targets, counts: Any = counts) -> Any:
            return det.loss(outputs(found), targets, counts)

        (value, parts), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(leaves)
        stored = {k: case[f"{name}/{k}_loss"].sum() for k in ("det", "off", "pull", "push")}  # over the levels
        np.testing.assert_allclose(value, sum(stored.values()), rtol=1e-5, err_msg=name)
        for ours_key, theirs, weight in (
            ("heatmap", "det", 1),
            ("offset", "off", 1),
            ("pull", "pull", 0.1),
            ("push", "push", 0.1),
        ):
            np.testing.assert_allclose(weight * parts[ours_key], stored[theirs], rtol=1e-5, err_msg=f"{name} {theirs}")
        compared = 0
        for key, slope in slopes.items():
            stored_name = f"{name}/grad_{key.removeprefix('co_')}"
            if stored_name in case.arrays:
                expected = nhwc(case[stored_name])
                np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-6, err_msg=stored_name)
                compared += 1
        assert compared


@each_case("fn_mmdet_losses")
def test_embeddings_of_several_channels(case: Any) -> None:
    """Each channel of an object counts as an object."""
    settings = case.info["details"]["ae"]
    tl, br = leaf(case, "ae_tl"), leaf(case, "ae_br")
    images, _, width, channels = tl.shape
    slots = max(len(objects) for objects in settings["match"])
    index, mask = np.zeros((2, images, slots), np.int32), np.zeros((images, slots), bool)
    for i, objects in enumerate(settings["match"]):
        for m, (first, second) in enumerate(objects):
            index[:, i, m] = [y * width + x for y, x in (first, second)]
            mask[i, m] = True

    def total(tl: Any, br: Any) -> Any:
        rows = [losses.gather_cells(t, i).reshape(images, -1) for t, i in ((tl, index[0]), (br, index[1]))]
        pull, push = losses.associative_embedding(*rows, jnp.repeat(mask, channels, axis=1), eps=0.0)
        pull, push = settings["pull_weight"] * pull, settings["push_weight"] * push
        return pull + push, (pull, push)

    (_, (pull, push)), slopes = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(tl, br)
    np.testing.assert_allclose(pull, case["ae/pull"].item(), rtol=1e-5)
    np.testing.assert_allclose(push, case["ae/push"].item(), rtol=1e-5)
    for slope, name in zip(slopes, ("ae/grad_tl", "ae/grad_br"), strict=True):
        np.testing.assert_allclose(slope, nhwc(case[name]), rtol=1e-5, atol=1e-6)
