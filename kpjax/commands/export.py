"""`kpjax export`: write a detector for JAX (StableHLO), TensorFlow (SavedModel) or onnxruntime alone."""

from __future__ import annotations

import argparse
import json
import os

from kpjax.config import Config
from kpjax.errors import ConfigError
from kpjax.export.onnx_file import require_onnx, save_onnx
from kpjax.export.saved_model import save_for_tensorflow
from kpjax.export.stablehlo import PLATFORMS, export, exportable, inputs_of, outputs_of

EXAMPLES = (
    "kpjax export --checkpoint runs/mine --out exported --size 512 512",
    "kpjax export --checkpoint runs/mine --out exported --preset flip --saved-model",
)
INFO = "export.json"  # not config.json, which marks work directories and inference checkpoints
LOADER = '''"""Runs the exported detector: needs jax and numpy, nothing of kpjax.  python load.py"""
import json, os
import jax.export, numpy as np

here = os.path.dirname(os.path.abspath(__file__))
program = jax.export.deserialize(bytearray(open(f"{here}/model.stablehlo", "rb").read()))
stored = np.load(f"{here}/weights.npz")
weights = [stored[name] for name in stored.files]
info = json.load(open(f"{here}/export.json"))
detect = lambda *images: program.call(weights, *images)  # info["inputs"] of B images -> info["outputs"]
found = detect(*(np.ones((2, *shape), dtype) for _, shape, dtype in info["inputs"]))
print({name: x.shape for name, x in zip(info["outputs"], found)}, info["classes"][:3])
'''


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = (
        "Write a detector as StableHLO for CPU, CUDA and TPU, any batch, with a loader of ten lines; and as a "
        "SavedModel of TensorFlow, and as one ONNX file."
    )
    parser.add_argument("--checkpoint", required=True, help="work directory of train.py, or an inference checkpoint")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of a canvas (default: what the checkpoint was trained on; where it does not say, 512 512, or 511 511 "
        "for the models with corners)",
    )
    parser.add_argument(
        "--preset",
        help="test protocol: na or flip (default: that of the checkpoint's configuration, or na where it has none or "
        "one of several scales)",
    )
    parser.add_argument(
        "--saved-model",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="write DIR/saved_model too, for TensorFlow; the weights stand in it once more",
    )
    parser.add_argument(
        "--onnx",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="write DIR/model.onnx too, from uint8 images to detections, and compare what onnxruntime finds with it",
    )
    parser.add_argument("--top-k", type=int, default=100, help="detections an image (default %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Export and say what was written.  Raises UserError for what cannot work."""
    import jax
    import numpy as np

    from kpjax.checkpoint.weights import describe, load_inference
    from kpjax.detectors.base import check_size
    from kpjax.inference.outputs import output_folder

    if args.top_k < 1:
        raise ConfigError(f"--top-k is {args.top_k}; it must be at least 1")
    out = args.out or "."
    if os.path.isdir(out) and os.listdir(out) and not os.path.exists(os.path.join(out, INFO)):
        raise ConfigError(f"--out {out} holds files that are no export; name another folder, or empty it")
    if args.onnx:
        require_onnx()
    loaded = load_inference(args.checkpoint)
    detector, config = loaded.detector, loaded.config
    trained = (config.augment.height, config.augment.width) if config else detector.preprocess.one_canvas
    trained = trained or (512 - detector.less,) * 2
    size = tuple(args.size or trained)
    check_size(detector, size, "--size HEIGHT", "--size WIDTH")
    preset = args.preset or preset_of(config, exportable(detector))
    leaves, tree = jax.tree.flatten(loaded.variables)
    exported = export(detector, tree, leaves, size, preset, args.top_k)
    folder = output_folder(out)
    with open(os.path.join(folder, "model.stablehlo"), "wb") as file:
        file.write(exported.serialize())
    np.savez(os.path.join(folder, "weights.npz"), *leaves)
    info = describe(detector, loaded.names, None) | {"size": size, "preset": preset, "top_k": args.top_k}
    info["inputs"], info["outputs"] = inputs_of(detector, size), outputs_of(detector)
    if detector.points is not None:
        info["keypoint_names"] = detector.points.names
    for name, text in ((INFO, json.dumps(info, indent=1)), ("load.py", LOADER)):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(text)
    if args.saved_model:
        save_for_tensorflow(detector, tree, leaves, size, preset, args.top_k, os.path.join(folder, "saved_model"))
    if args.onnx:
        path = os.path.join(folder, "model.onnx")
        off = save_onnx(detector, tree, leaves, size, preset, args.top_k, loaded.names, path)
        print(f"{path}: onnxruntime's boxes are within {max(off, 1e-6):.1g} pixels of JAX's, at batches of 1 and 3")
    files = [os.path.join(path, name) for path, _, names in os.walk(folder) for name in names]
    megabytes = sum(map(os.path.getsize, files)) / 1e6
    whose = "" if args.preset or config is None else " (the configuration's)"
    if config is not None and not args.preset and preset != config.eval.preset:
        whose = f" (the configuration's {config.eval.preset} is of several programs)"
    print(f"{os.path.abspath(folder)}: {detector.name}, canvases of {size[0]}x{size[1]}, preset {preset}{whose}, for")
    print(f"  {', '.join(PLATFORMS)}; {megabytes:,.1f} MB; try: python {os.path.join(out, 'load.py')}")
    return 0


def preset_of(config: Config | None, exportable: list[str]) -> str:
    """The preset that is exported where none is given: the configuration's where it is one program, else "na"."""
    return config.eval.preset if config is not None and config.eval.preset in exportable else "na"
