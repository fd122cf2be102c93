"""Train a detector.

    python train.py --config configs/coco_r18.py --workdir runs/coco
    python train.py --config configs/coco_r18.py --workdir runs/coco64 --config.batch=64

One process on each host of a TPU pod, or several anywhere, are one run (README.md, Many hosts).
The same command again goes on where the work directory stands; one run at a time holds it.  Any field of the
configuration (kpjax/config.py) can be changed with --config.key=value.
"""

from kpjax.commands.interrupt import leaving_at_once

with leaving_at_once():
    from kpjax.commands import flags
    from kpjax.commands.train import define, main

if __name__ == "__main__":
    flags.run(main, define)
