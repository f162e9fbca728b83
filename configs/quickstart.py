"""VT-ResNet-18 at small size on handwritten digits: the embedded default.

vt_flax train --config configs/quickstart.py --workdir runs/quickstart

Expect 96.5 to 99 % test top-1 after about two minutes on two CPU cores; it depends on
the processor, whose sums are rounded in another order.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = ConfigDict()
    config.batch_size = 64
    config.duration = "16 epochs"

    config.model = ConfigDict()
    config.model.name = "vt_resnet18"
    config.model.stem = "small"
    config.model.width = 16
    config.model.token_channels = 128
    config.model.group_channels = 32

    config.data = ConfigDict()
    config.data.name = "digits"
    config.data.image_size = 32
    config.data.train_crop = "pad"
    config.data.crop_padding = 4
    config.data.flip = False  # a mirrored digit is another sign

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.weight_decay = 5e-4

    config.schedule = ConfigDict()
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.05
    config.schedule.warmup = "1 epochs"
    config.schedule.warmup_learning_rate = 0.0

    config.ema = ConfigDict()
    config.ema.decay = 0.99

    config.eval = ConfigDict()
    config.eval.every = "4 epochs"
    config.checkpoint = ConfigDict()
    config.checkpoint.every = "4 epochs"
    config.log = ConfigDict()
    config.log.every = "20 steps"
    return config
