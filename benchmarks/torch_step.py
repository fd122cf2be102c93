"""The PyTorch part of accelerator.py: training and inference of one model on one device, in three forms.

    python benchmarks/torch_step.py --model centernet_r18 --batches 1 16 --rows rows.jsonl

The networks are those of torch_networks.py, under bfloat16 autocast (--dtype).  Forms: "torch", its own order NCHW,
run as it is; "torch-nhwc", the same with channels last; "compiled", channels last and `torch.compile`, at batch 1 and
at the best batch of the second form.

Training is forward, backward and an Adam step on images that lie on the device.  Its loss is of kpjax's cost, not its
numbers: the penalty-reduced focal loss on heatmaps, against random ones, and the mean square of all other heads, on
each stack; augmentation, targets, and the pairing of embeddings are left out, which kpjax's step contains.  Inference
goes from uint8 images through the network to the 100 best peaks of each heatmap; boxes, pairs of corners and soft-NMS
are left out, which kpjax's step contains.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import accelerator_table
import torch
import torch_networks
from compile_time import model_config
from torch import Tensor, nn
from torch.nn import functional
from torch_layers import DEFORMABLE

from kpjax.detectors import options_of

FORMS = ("torch", "torch-nhwc", "compiled")
KINDS = ("training", "inference")
Step = Callable[[], Any]


def random_images(batch: int, side: int, device: torch.device) -> Tensor:
    """(B, side, side, 3) uint8, as images are decoded."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8, generator=generator).to(device)


def normalised(images: Tensor, layout: torch.memory_format) -> Tensor:
    """(B, 3, H, W) float32, in the memory's order."""
    return ((images.permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.27).contiguous(memory_format=layout)


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """CornerNet's penalty-reduced focal loss (its equation 1), the mean over all cells."""
    logits = logits.float()
    score = torch.sigmoid(logits).clamp(1e-4, 1 - 1e-4)
    found = (1 - score) ** 2 * torch.log(score) * (target == 1)
    missed = (1 - target) ** 4 * score**2 * torch.log(1 - score) * (target < 1)
    return -(found + missed).mean()


def training_step(network: nn.Module, images: Tensor, layout: torch.memory_format, cast: Any) -> Step:
    """A step that changes the network's weights."""
    network.train()
    forward: Any = network
    fused = {"fused": True} if images.device.type == "cuda" else {}
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, **fused)
    prepared = normalised(images, layout)
    targets: dict[str, Tensor] = {}

    def loss_of(outputs: list[dict[str, Tensor]]) -> Tensor:
        total = torch.zeros((), device=images.device)
        for maps in outputs:
            for name, head in maps.items():
                if "heat" not in name:
                    total = total + head.float().square().mean()
                    continue
                if name not in targets:
                    targets[name] = torch.rand(head.shape, device=images.device)
                total = total + focal_loss(head, targets[name])
        return total

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with cast():
            outputs = forward(prepared)
        loss = loss_of(outputs)
        loss.backward()
        optimizer.step()
        return loss

    return step


def inference_step(network: nn.Module, images: Tensor, layout: torch.memory_format, cast: Any) -> Step:
    """A step from uint8 images to the best peaks of the last stack's heatmaps: scores and places."""
    network.eval()

    def step() -> Any:
        with torch.inference_mode(), cast():
            maps = network(normalised(images, layout))[-1]
            found = []
            for name, head in maps.items():
                if "heat" in name:
                    score = torch.sigmoid(head.float())
                    peaks = score * (functional.max_pool2d(score, 3, 1, 1) == score)
                    found.append(peaks.flatten(1).topk(min(100, peaks[0].numel())))
        return found

    return step


def wait(device: torch.device) -> None:
    """Until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(step: Step, device: torch.device, steps: int, rounds: int) -> tuple[list[float], float]:
    """(seconds a step of each round, seconds of the first step, in which what is compiled is compiled)."""
    began = time.perf_counter()
    step()
    wait(device)
    first = time.perf_counter() - began
    step()
    times = []
    for _ in range(rounds):
        wait(device)
        began = time.perf_counter()
        for _ in range(steps):
            step()
        wait(device)
        times.append((time.perf_counter() - began) / steps)
    return times, first


def one_row(kind: str, form: str, batch: int, args: argparse.Namespace) -> dict[str, Any] | None:
    """The figures of one program; None, and a line, where it does not fit the memory or cannot be compiled."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = model_config(args.model, batch, args.dtype, args.tiny)
    layout = torch.contiguous_format if form == "torch" else torch.channels_last
    what = f"  {args.model} {kind}, {form}, batch {batch}"
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        torch.manual_seed(0)
        network: Any = torch_networks.build(args.model, config.model.num_classes, **shape_options(config))
        network = network.to(device, memory_format=layout)
        if form == "compiled":
            torch.compiler.reset()
            network.compile()  # the forward pass; PyTorch compiles the backward pass from it
        images = random_images(batch, config.augment.height, device)

        def cast() -> Any:
            return torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.dtype == "bfloat16")

        make = training_step if kind == "training" else inference_step
        times, first = measure(make(network, images, layout, cast), device, args.steps, args.rounds)
    except torch.cuda.OutOfMemoryError:
        print(f"{what}: does not fit the memory", flush=True)
        return None
    except Exception as error:  # torch.compile fails in many ways: no compiler, no Triton, an operation it lacks
        if form != "compiled":
            raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(f"{what}: torch.compile failed ({reason[0][:120]}); the other forms stand alone", flush=True)
        return None
    finally:
        network = None
        gc.collect()
    median = statistics.median(times)
    row: dict[str, Any] = {"framework": form, "model": args.model, "kind": kind, "batch": batch, "seconds": median}
    row |= {"rounds": times, "spread": (max(times) - min(times)) / median, "images_per_s": batch / median}
    row |= {"first_s": first, "torch": torch.__version__}
    if device.type == "cuda":
        row["peak_bytes"] = torch.cuda.max_memory_allocated()
    if args.model == "centernet_dla34":
        row["deformable"] = DEFORMABLE
    return row


def shape_options(config: Any) -> dict[str, Any]:
    """The options of the model that its shape depends on."""
    return {name: value for name, value in options_of(config.model).items() if name != "dtype"}


def measure_model(args: argparse.Namespace, report: Callable[[dict[str, Any]], None]) -> None:
    """All rows that the time allows: the forms side by side, batch after batch, then the compiled ones."""
    deadline = time.monotonic() + args.seconds
    if args.tiny:
        torch.set_num_threads(1)  # PyTorch 2.13 writes beyond its arrays on CPUs with two (bfloat16, channels last)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    eager = [form for form in args.forms if form != "compiled"]
    best: dict[str, dict[str, Any]] = {}
    took: dict[tuple[str, str], float] = {}  # seconds that the last batch took
    full: set[tuple[str, str]] = set()

    def one(kind: str, form: str, batch: int) -> None:
        if (kind, form) in full:
            return
        if time.monotonic() + took.get((kind, form), 0.0) > deadline:
            print(f"  {args.model} {kind}, {form}, batch {batch}: no time left", flush=True)
            full.add((kind, form))
            return
        began = time.monotonic()
        row = one_row(kind, form, batch, args)
        took[kind, form] = time.monotonic() - began
        if row is None:
            full.add((kind, form))
            return
        report(row)
        if kind not in best or row["images_per_s"] > best[kind]["images_per_s"]:
            best[kind] = row

    for batch in args.batches:
        for form in eager[::-1]:
            for kind in KINDS:
                one(kind, form, batch)
    if "compiled" in args.forms:
        for at_best in (True, False):
            for kind in KINDS:
                batch = best[kind]["batch"] if kind in best else args.batches[0]
                if at_best or batch != args.batches[0]:
                    one(kind, "compiled", batch if at_best else args.batches[0])


def main() -> int:
    """Measure one model; a line of JSON for each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, choices=torch_networks.MODELS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--steps", type=int, default=20, help="a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing that would end later")
    parser.add_argument("--tiny", action="store_true", help="narrow networks at 64 pixels")
    parser.add_argument("--rows", help="append the rows to this file, a line of JSON each")
    args = parser.parse_args()

    def report(row: dict[str, Any]) -> None:
        print(accelerator_table.line(row), flush=True)
        if args.rows:
            with open(args.rows, "a", encoding="utf-8") as file:
                print(json.dumps(row), file=file)

    measure_model(args, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
