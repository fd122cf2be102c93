"""3D boxes by CenterNet-DLA-34 on KITTI, 70 epochs: xingyizhou's ddd (Objects as Points, section 4.1).

    python train.py --config configs/kitti_dla34_3d.py --workdir runs/kitti_dla34_3d --config.init_from=dla34.pth

data/kitti holds KITTI's object benchmark as it is distributed, training/image_2, label_2 and calib, and beside them
ImageSets/train.txt and val.txt with the numbers of the frames: 3,712 and 3,769 in the usual split (3DOP).
dla34.pth is ucbdrive's ImageNet classifier, from which the original starts.

Batch 16 on 2 GPUs, Adam 1.25e-4 dropped by 10 after epochs 45 and 60 of 70; 7 hours for its authors.  Half of the
images are scaled and moved, and these train no depth and no size; none is mirrored, and colours stay.  Each GPU had
BatchNorm statistics of its own, of 7 images and of 9; here they are of 2 groups of 8.

Another batch: --config.optim.scale_lr=linear lets the rate follow it; unverified (docs/recipes.md).

Published for cars of the 3DOP split, easy / moderate / hard, 11 points: 2D 96.9 / 87.8 / 79.2, orientation 93.9 / 84.3
/ 75.7, bird's-eye at an overlap of 0.5 34.0 / 30.5 / 26.8.  Not trained here.
"""

from kpjax.config import Config


def get_config() -> Config:
    config = Config(batch=16, epochs=70.0)
    config.model.name = "centernet_dla34_3d"
    config.model.bn_groups = 2
    config.data.source = "kitti"
    config.data.kitti_dir = "data/kitti"
    config.data.canvas = 1248
    config.data.max_boxes = 50
    config.augment.kind = "shift"
    config.augment.shift_unit = "side"
    config.augment.shift_probability = 0.5
    config.augment.height = 384
    config.augment.width = 1280
    config.augment.flip = 0.0
    config.augment.color = 0.0
    config.augment.lighting = 0.0
    config.optim.lr = 1.25e-4
    config.optim.lr_batch = 16
    config.optim.drops = (45 / 70, 60 / 70)
    config.eval.resolution = "fixed"
    config.eval.score_threshold = 0.2
    config.eval.every = 2320
    return config
