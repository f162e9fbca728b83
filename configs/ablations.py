"""The paper's ablations on ImageNet, each under its recipe of 90 epochs (v4).

vt_flax train --config configs/ablations.py:recurrent --workdir WORKDIR
vt_flax train --config configs/ablations.py:tokens32,34 --workdir WORKDIR

ARG is a row, then the depth of the ResNet: 18 (the default) or 34. The recipe: SGD with
momentum 0.9, batch 256, rate 0.1 divided by 10 every 30 epochs, weight decay 4e-5.
Expect the top-1 in percent printed in the paper, for VT-R18 and VT-R34:

  pooling            70.6  73.5     tokens16        72.0  74.8
  clustering         71.5  75.1     tokens32        71.7  75.1
  recurrent          72.0  74.8     tokens64        72.0  75.0
  static             71.4  74.5     no_projector    70.9  74.1
  no_interaction     68.8  73.4     resnet          69.9  73.3
  graph              69.2  73.6     no_position     (v1; not printed as a number)
  transformer        72.0  74.8     v1              (v1; not printed as a number)

We have not run them. Their multiply-adds: vt_flax summarize --paper
"""

from ml_collections import ConfigDict

# Options of the model beside v4's preset; recurrent, transformer and tokens16 name the
# same model, once for each of the paper's tables that it stands in.
ROWS = {
    "pooling": {"first_tokenizer": "pooling", "tokenizer": "pooling"},
    "clustering": {"first_tokenizer": "clustering"},
    "recurrent": {"tokenizer": "recurrent"},
    "static": {"tokenizer": "static"},
    "no_interaction": {"interaction": "none"},
    "graph": {"interaction": "graph"},
    "transformer": {"interaction": "transformer"},
    "tokens16": {"tokens": 16},
    "tokens32": {"tokens": 32},
    "tokens64": {"tokens": 64},
    "no_projector": {"projector": False},
    "v1": {"preset": "v1"},
    "no_position": {"preset": "v1", "position_encoding": False},
    "resnet": {},
}


def get_config(arg: str = "recurrent") -> ConfigDict:
    """Returns the configuration of one row."""
    row, _, depth = arg.partition(",")
    if row not in ROWS:
        raise ValueError(f"row {row!r} is not known: choose from {', '.join(ROWS)}")
    if depth not in ("", "18", "34"):
        raise ValueError(f"depth {depth!r}: choose 18 or 34")

    config = ConfigDict()
    config.seed = 0
    config.batch_size = 256
    config.duration = "90 epochs"

    config.model = ConfigDict()
    config.model.name = f"{'' if row == 'resnet' else 'vt_'}resnet{depth or 18}"
    if row != "resnet":
        config.model.preset = "v4"
    config.model.update(ROWS[row])
    config.model.dtype = "bfloat16"  # [choice]

    config.data = ConfigDict()
    config.data.name = "imagenet2012"
    config.data.data_dir = ""
    config.data.train_split = "train"
    config.data.eval_split = "validation"
    config.data.image_size = 224
    config.data.train_crop = "random_resized"  # [choice]
    config.data.crop_min_area = 0.08  # [choice]
    config.data.eval_resize = 256  # [choice]
    config.data.flip = True

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 4e-5

    config.schedule = ConfigDict()
    config.schedule.name = "step"
    config.schedule.learning_rate = 0.1
    config.schedule.warmup = "0 steps"
    config.schedule.boundaries = ["30 epochs", "60 epochs"]
    config.schedule.decay_factor = 0.1

    config.loss = ConfigDict()
    config.loss.label_smoothing = 0.0

    config.ema = ConfigDict()
    config.ema.decay = 0.0

    config.eval = ConfigDict()
    config.eval.every = "1 epochs"
    config.checkpoint = ConfigDict()
    config.checkpoint.every = "1 epochs"
    config.log = ConfigDict()
    config.log.every = "100 steps"
    return config
