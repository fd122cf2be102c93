"""Evaluate a detector on a split: COCO's 12 numbers (of keypoints 10 more), its detections as JSON, pictures.

    python eval.py --workdir runs/coco                                          newest checkpoint
    python eval.py --workdir runs/coco --best                                   best by AP
    python eval.py --checkpoint runs/coco/model --split train --per-class       an inference checkpoint

The settings are those stored with the weights.  With --config they are the file's, and fields can be set:
--config configs/coco_r18.py --config.eval.max_side=800 --config.data.val.images=FOLDER --config.model.dtype=bfloat16.
Options of the model that the file does not set stay those stored, and so do the keypoints and which of them a mirror
exchanges; the sigmas that keypoints are measured with are the data's, config.data.sigmas.
"""

from kpjax.commands.interrupt import leaving_at_once

with leaving_at_once():
    from kpjax.commands import flags
    from kpjax.commands.evaluate import define, main

if __name__ == "__main__":
    flags.run(main, define)
