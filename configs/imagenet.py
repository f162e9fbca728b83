"""ImageNet with the paper's advanced recipe (v4, training settings).

vt_flax train --config configs/imagenet.py:vt_resnet18 --workdir WORKDIR

ARG is a model, vt_resnet18 by default: `vt_resnet{18,34,50,101}`,
`resnet{18,34,50,101}`; `vt_resnet18,v4` takes the second version of the modules.

What the paper says: 400 epochs of RMSProp at batch 2048; the rate rises from 0.01 to
0.16 in 5 epochs, then falls by 0.9875 an epoch; synchronised batch normalization; label
smoothing; AutoAugment; stochastic depth with survival 0.9; dropout 0.2; an average of
the weights of 0.99985. What it does not say is marked [choice].

v4 distils too, 0.8 for the teacher and 0.2 for the labels. Which teacher is yours to
say: the workdir of a classifier of ImageNet that was trained before, or made by
import_weights, such as --config.distillation.teacher=runs/resnet101

Expect, from the paper's table and with its distillation: 76.8 (VT-R18), 79.9 (VT-R34),
80.6 (VT-R50) and 82.3 (VT-R101) percent top-1. We have not run this. Needs imagenet2012
as it is prepared by
`vt_flax prepare_data imagenet2012 --manual_dir ARCHIVES --data_dir D`, and
--config.data.data_dir=D.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "vt_resnet18") -> ConfigDict:
    """Returns the configuration."""
    name, _, preset = arg.partition(",")
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 2048
    config.duration = "400 epochs"

    config.model = ConfigDict()
    config.model.name = name
    if preset:
        config.model.preset = preset
    config.model.dropout = 0.2
    config.model.survival_probability = 0.9
    config.model.zero_init_residual = True  # [choice]
    config.model.dtype = "bfloat16"  # [choice]

    config.data = ConfigDict()
    config.data.name = "imagenet2012"
    config.data.data_dir = ""
    config.data.train_split = "train"
    config.data.eval_split = "validation"
    config.data.image_size = 224  # [choice]
    config.data.train_crop = "random_resized"
    config.data.crop_min_area = 0.08
    config.data.eval_resize = 256  # [choice]
    config.data.flip = True
    config.data.augment = "autoaugment"

    config.optimizer = ConfigDict()
    config.optimizer.name = "rmsprop_tf"  # [choice]
    config.optimizer.decay = 0.9  # [choice]
    config.optimizer.momentum = 0.9  # [choice]
    config.optimizer.epsilon = 1e-3  # [choice]
    config.optimizer.weight_decay = 1e-5  # [choice]

    config.schedule = ConfigDict()
    config.schedule.name = "exponential"
    config.schedule.warmup = "5 epochs"
    config.schedule.warmup_learning_rate = 0.01
    config.schedule.learning_rate = 0.16
    config.schedule.decay_factor = 0.9875
    config.schedule.decay_every = "1 epochs"
    config.schedule.staircase = True  # [choice]

    config.loss = ConfigDict()
    config.loss.label_smoothing = 0.1  # [choice]

    config.distillation = ConfigDict()
    config.distillation.teacher = ""  # v4: a workdir
    config.distillation.weight = 0.8
    config.distillation.temperature = 1.0  # [choice]

    config.ema = ConfigDict()
    config.ema.decay = 0.99985
    config.ema.ramp = True  # [choice]

    config.eval = ConfigDict()
    config.eval.every = "5 epochs"
    config.checkpoint = ConfigDict()
    config.checkpoint.every = "1 epochs"
    config.checkpoint.keep = 3
    config.log = ConfigDict()
    config.log.every = "100 steps"
    return config
