"""Semantic segmentation: Panoptic FPN's semantic branch, and VT-FPN.

vt_flax train --config configs/segmentation.py --workdir runs/shapes
vt_flax train --config configs/segmentation.py:camvid,fpn --workdir runs/fpn
vt_flax train --config configs/segmentation.py:coco_stuff,vt_fpn,resnet50 \
    --workdir runs/coco --config.init_from=runs/resnet50_msra

ARG is a list of words joined by commas:
  a dataset   shapes (the default, which comes with the package), camvid, coco_stuff,
              lip or ade20k; all but shapes must have been prepared: see README.md
  a model     vt_fpn (the default) or fpn
  a backbone  resnet18, resnet34, resnet50 or resnet101; without, the dataset's own
  cpu         camvid at a third of its size, a small network and 40 epochs

shapes: small, for a CPU; expect over 80 % mIoU, see BENCHMARKS.md, and there camvid.
coco_stuff: the paper's recipe, Detectron2's 1x: batch 32, rate 0.04, 90,000 steps of
  16 images there, so 45,000 here; short sides of 640 to 800; the paper has 40.78 (FPN)
  and 41.00 % mIoU (VT-FPN) for ResNet-50, 41.51 and 41.50 for ResNet-101.
lip: the paper's recipe: batch 96, rate 0.01, weight decay 5e-4, 473 x 473; the paper
  has 47.04 and 47.39 for ResNet-50, 47.35 and 47.58 for ResNet-101.
Both start from a ResNet of variant msra, trained on ImageNet: --config.init_from. From
scratch they will not get there.
"""

from ml_collections import ConfigDict

MODELS = ("fpn", "vt_fpn")
BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101")
CPU = "cpu"


def get_config(arg: str = "") -> ConfigDict:
    """Returns the configuration."""
    words = [word for word in arg.split(",") if word]
    known = (*DATASETS, *MODELS, *BACKBONES, CPU)
    unknown = [word for word in words if word not in known]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not known: choose from {', '.join(known)}")
    dataset = _one(words, tuple(DATASETS), "shapes")
    config = _common()
    backbone = DATASETS[dataset](config)
    model = _one(words, MODELS, "vt_fpn")
    config.model.name = f"{model}_{_one(words, BACKBONES, backbone)}"
    if CPU in words and dataset != "camvid":
        raise ValueError(f"{CPU} is for camvid; shapes is small as it is")
    if CPU in words:
        _camvid_on_cpus(config)
    if dataset == "shapes" or CPU in words:
        _small(config, model)
    return config


def _one(words: list[str], choices: tuple[str, ...], default: str) -> str:
    found = [word for word in words if word in choices]
    if len(found) > 1:
        raise ValueError(f"one at a time, not {' and '.join(found)}")
    return found[0] if found else default


def _common() -> ConfigDict:
    config = ConfigDict()
    config.model = ConfigDict()
    config.data = ConfigDict()
    config.segmentation = ConfigDict()
    config.parallel = ConfigDict()
    config.loss = ConfigDict({"label_smoothing": 0.0})
    config.ema = ConfigDict({"decay": 0.0})
    config.optimizer = ConfigDict({"name": "sgd", "momentum": 0.9})
    config.schedule = ConfigDict()
    config.eval = ConfigDict({"batch_size": 8})
    config.checkpoint = ConfigDict()
    config.log = ConfigDict()
    return config


def _small(config: ConfigDict, model: str) -> None:
    """A network of half the width and less, for CPUs."""
    config.model.width = 32
    config.model.fpn_channels = 64
    config.model.head_channels = 32
    if model == "vt_fpn":
        config.model.token_channels = 128
        config.model.group_channels = 16
        config.model.heads = 4


def _shapes(config: ConfigDict) -> str:
    config.batch_size = 16
    config.duration = "20 epochs"
    config.data.name = "shapes"
    # Two cores train 1.2 times as fast, each on its half of a batch.
    config.parallel.cpu_devices = 2
    config.segmentation.canvas = [64, 64]
    # Enlarged: at a stride of 4 pixels, the network's maps are then finer.
    config.segmentation.short_side = 96
    config.segmentation.eval_size = [96, 96]
    config.segmentation.crop = [96, 96]
    config.segmentation.scale_min = 0.8
    config.segmentation.scale_max = 1.25
    config.segmentation.max_class_share = 1.0
    _adamw(config)
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.003
    config.schedule.warmup = "10 %"
    config.schedule.warmup_learning_rate = 0.0
    config.ema.decay = 0.99
    config.eval.every = "5 epochs"
    config.eval.batch_size = 50
    config.checkpoint.every = "5 epochs"
    config.log.every = "40 steps"
    return "resnet18"


def _adamw(config: ConfigDict) -> None:
    """From scratch VT-FPN learns by it several times as fast as by sgd."""
    config.optimizer.name = "adamw"
    config.optimizer.decay = 0.999
    config.optimizer.epsilon = 1e-8
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0


def _camvid(config: ConfigDict) -> str:
    config.batch_size = 16
    config.duration = "400 epochs"
    config.model.num_classes = 11  # for `plan`, where the data is not there
    config.data.name = "camvid"
    config.segmentation.canvas = [360, 480]
    config.segmentation.crop = [360, 480]
    config.segmentation.brightness = 0.3
    config.segmentation.contrast = 0.3
    config.segmentation.saturation = 0.3
    _adamw(config)
    config.schedule.name = "poly"
    config.schedule.learning_rate = 0.002
    config.schedule.warmup = "5 %"
    config.schedule.warmup_learning_rate = 0.0
    config.ema.decay = 0.999
    config.eval.every = "20 epochs"
    config.checkpoint.every = "20 epochs"
    config.log.every = "1 epochs"
    return "resnet18"


def _camvid_on_cpus(config: ConfigDict) -> None:
    config.duration = "40 epochs"
    config.segmentation.short_side = 120
    config.segmentation.crop = [120, 160]
    config.segmentation.eval_size = [120, 160]
    config.parallel.cpu_devices = 2
    config.ema.decay = 0.99
    config.eval.every = "8 epochs"
    config.checkpoint.every = "8 epochs"
    config.log.every = "2 epochs"


def _coco_stuff(config: ConfigDict) -> str:
    config.batch_size = 32
    config.duration = "45000 steps"
    config.model.variant = "msra"
    config.model.dtype = "bfloat16"
    config.data.name = "coco_stuff"
    config.data.eval_split = "validation"
    config.segmentation.canvas = [640, 640]
    # Detectron2 trains on whole images, of any shape; one shape holds most of each.
    config.segmentation.crop = [800, 800]
    config.segmentation.short_side = 800
    config.segmentation.scale_min = 0.8
    config.segmentation.scale_max = 1.0
    config.segmentation.max_class_share = 1.0
    config.segmentation.eval_size = [1333, 1333]
    config.optimizer.weight_decay = 1e-4
    config.schedule.name = "step"
    config.schedule.learning_rate = 0.04
    config.schedule.boundaries = ["30000 steps", "40000 steps"]
    config.schedule.decay_factor = 0.1
    config.schedule.warmup = "1000 steps"
    config.schedule.warmup_learning_rate = 4e-5
    config.eval.every = "5000 steps"
    config.checkpoint.every = "2500 steps"
    return "resnet50"


def _lip(config: ConfigDict) -> str:
    config.batch_size = 96
    config.duration = "150 epochs"
    config.model.variant = "msra"
    config.model.dtype = "bfloat16"
    config.data.name = "lip"
    config.data.eval_split = "validation"
    config.segmentation.canvas = [640, 640]
    config.segmentation.eval_canvas = [1024, 1024]
    config.segmentation.crop = [473, 473]
    config.segmentation.short_side = 473
    config.segmentation.scale_min = 0.5
    config.segmentation.scale_max = 1.5
    config.segmentation.max_class_share = 1.0
    config.segmentation.eval_size = [473, 473]
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "poly"
    config.schedule.learning_rate = 0.01
    config.schedule.warmup = "0 steps"
    config.eval.every = "10 epochs"
    config.checkpoint.every = "5 epochs"
    return "resnet50"


def _ade20k(config: ConfigDict) -> str:
    config.batch_size = 16
    config.duration = "80000 steps"
    config.model.variant = "msra"
    config.model.dtype = "bfloat16"
    config.data.name = "ade20k"
    config.data.eval_split = "validation"
    config.segmentation.canvas = [1024, 1024]
    config.segmentation.eval_canvas = [2048, 2304]
    config.segmentation.crop = [512, 512]
    config.segmentation.short_side = 512
    config.segmentation.brightness = 0.13
    config.segmentation.contrast = 0.5
    config.segmentation.saturation = 0.5
    config.segmentation.hue = 0.05
    config.segmentation.eval_size = [1024, 2048]
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "poly"
    config.schedule.learning_rate = 0.01
    config.schedule.warmup = "0 steps"
    config.eval.every = "8000 steps"
    config.checkpoint.every = "4000 steps"
    return "resnet50"


DATASETS = {
    "shapes": _shapes,
    "camvid": _camvid,
    "coco_stuff": _coco_stuff,
    "lip": _lip,
    "ade20k": _ade20k,
}
