"""CIFAR-10: VT-ResNet-18 and ResNet-18 with a stem for small images.

vt_flax train --config configs/cifar10.py --workdir runs/cifar10
vt_flax train --config configs/cifar10.py:resnet18 --workdir runs/resnet18
vt_flax train --config configs/cifar10.py:cpu,no_position --workdir runs/cpu

ARG is a list of words joined by commas:
  a model     vt_resnet18 (the default), resnet18, or any other name of the registry
  a variant   static (no dynamic tokenizer), no_position, no_projector, no_interaction
  cpu         a quarter of the width and 5 epochs, for a machine without accelerator

Without `cpu` this is the usual recipe of 200 epochs, meant for an accelerator. With
`cpu`, on two cores, expect about 25 minutes; what was measured is in BENCHMARKS.md.
A network that was trained before teaches another with
--config.distillation.teacher=runs/resnet18
CIFAR-10 must have been prepared: `vt_flax prepare_data cifar10 --data_dir D`
and --config.data.data_dir=D, or name your own with --config.data.name.
"""

from ml_collections import ConfigDict

VARIANTS = {
    "static": {"tokenizer": "static"},
    "no_position": {"position_encoding": False},
    "no_projector": {"projector": False},
    "no_interaction": {"interaction": "none"},
}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the configuration."""
    words = [word for word in arg.split(",") if word]
    cpu = "cpu" in words
    variants = [word for word in words if word in VARIANTS]
    names = [word for word in words if word not in VARIANTS and word != "cpu"]
    if len(names) > 1:
        raise ValueError(f"one model at a time, not {' and '.join(names)}")

    config = ConfigDict()
    config.batch_size = 128
    config.duration = "5 epochs" if cpu else "200 epochs"

    config.model = ConfigDict()
    config.model.name = names[0] if names else "vt_resnet18"
    config.model.stem = "small"
    transformer = config.model.name.startswith("vt_")
    if variants and not transformer:
        raise ValueError(f"{variants[0]} is a variant of VT-ResNets")
    if cpu:
        config.model.width = 16
        if transformer:
            config.model.token_channels = 256
            config.model.group_channels = 16
    for variant in variants:
        config.model.update(VARIANTS[variant])

    config.data = ConfigDict()
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.train_crop = "pad"
    config.data.crop_padding = 4
    config.data.flip = True
    config.data.mean = [0.4914, 0.4822, 0.4465]
    config.data.std = [0.2470, 0.2435, 0.2616]

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    # At the usual rate of 0.1, and without clipping, VT-ResNet-18's loss rises above
    # its start for the first 150 steps; ResNet-18 gets the same.
    config.optimizer.clip_norm = 1.0

    config.schedule = ConfigDict()
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.05
    config.schedule.warmup = "5 %"
    config.schedule.warmup_learning_rate = 0.0

    config.loss = ConfigDict()
    config.loss.label_smoothing = 0.1

    config.ema = ConfigDict()
    config.ema.decay = 0.995 if cpu else 0.999

    config.eval = ConfigDict()
    config.eval.every = "1 epochs" if cpu else "5 epochs"
    config.eval.batch_size = 500
    config.checkpoint = ConfigDict()
    config.checkpoint.every = "1 epochs" if cpu else "5 epochs"
    config.log = ConfigDict()
    config.log.every = "50 steps"
    return config
