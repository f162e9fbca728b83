"""A training step in PyTorch, timed in a process of its own.

The process reads a request as a line of JSON, then numbers of steps, a line each, and
answers each line with one of JSON: see `serve`.
"""

import contextlib
import dataclasses
import json
import os
import sys
import time
import warnings
from typing import Any, TextIO

import numpy as np
import torch
from plain import Plain
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch_network import TorchResNet

from vt_flax.errors import UserError, first_line
from vt_flax.models.resnet import STAGE_SIZES

# With either set to 1 torch.compile gives back what it is given, without a word.
COMPILE_SWITCHES = ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE")


def make_network(from_timm: bool, plain: Plain) -> nn.Module:
    """Returns a network to train.

    Args:
      from_timm: whether to take timm's.
      plain: which one.

    Raises:
      UserError: if timm has no such network.
    """
    if not from_timm:
        options = dataclasses.asdict(plain)
        del options["depth"]
        return TorchResNet(**options)
    sizes = STAGE_SIZES[plain.depth]
    if (plain.stage_sizes, plain.width, plain.stem) != (sizes, 64, "imagenet"):
        raise UserError(
            f"timm has {plain.name} with stages {list(sizes)}, width 64 and ImageNet's "
            "stem alone"
        )
    import timm

    return timm.create_model(f"resnet{plain.depth}", num_classes=plain.num_classes)


def make_optimizer(network: nn.Module, config: dict[str, Any]) -> torch.optim.Optimizer:
    """Returns PyTorch's optimizer for a section `optimizer`; vectors do not decay."""
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    others = [p for p in network.parameters() if p.ndim > 1]
    groups = [
        {"params": others, "weight_decay": config["weight_decay"]},
        {"params": vectors, "weight_decay": 0.0},
    ]
    rate, momentum, decay = 1e-3, config["momentum"], config["decay"]
    if config["name"] == "sgd":
        return torch.optim.SGD(
            groups, rate, momentum, nesterov=config["nesterov"], fused=True
        )
    if config["name"] == "adamw":
        betas = (momentum, decay)
        return torch.optim.AdamW(groups, rate, betas, config["epsilon"], fused=True)
    # Both of ours cost what PyTorch's one does.
    return torch.optim.RMSprop(
        groups, rate, decay, config["epsilon"], momentum=momentum
    )


class TorchStep:
    """A training step on noise: normalization, both passes, optimizer, averages.

    Channels last; where `dtype` is not float32, with automatic mixed precision;
    compiled where that works.

    Args:
      request: `kind` (`torch`, `torch_eager` or `timm`), `plain` (fields of `Plain`),
        `device` (`cuda` or `cpu`), `threads`, `batch`, `image_size` (height and width),
        `dtype`, `mean`, `std`, `label_smoothing`, `average` (decay of the weights'
        average, or 0) and `optimizer` (the section).

    Attributes:
      network: the network that is trained.
      what: network, version and device.

    Raises:
      UserError: if there is no such network, or no GPU that PyTorch can use.
    """

    def __init__(self, request: dict[str, Any]):
        plain = Plain(**request["plain"])
        plain = dataclasses.replace(plain, stage_sizes=tuple(plain.stage_sizes))
        device = torch.device(request["device"])
        self._cuda = device.type == "cuda"
        if self._cuda and not torch.cuda.is_available():
            raise UserError("this PyTorch finds no GPU")
        torch.set_num_threads(request["threads"])
        # As JAX multiplies float32 on GPUs.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(0)
        network = make_network(request["kind"] == "timm", plain)
        network = network.to(device, memory_format=torch.channels_last).train()
        # The second is what is called, which may be the first compiled.
        self.network = self._called = network
        self._request = request
        self._optimizer = make_optimizer(network, request["optimizer"])
        self._average = None
        if request["average"]:
            self._average = AveragedModel(
                network,
                multi_avg_fn=get_ema_multi_avg_fn(request["average"]),
                use_buffers=True,
            )
        shape = (request["batch"], *request["image_size"], 3)
        generator = np.random.default_rng(0)
        images = generator.integers(0, 256, shape, dtype=np.uint8)
        # Seen as (batch, 3, H, W), it lies with its channels last.
        self._images = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
        self._labels = torch.zeros(request["batch"], dtype=torch.long, device=device)
        self._mean, self._std = (
            torch.tensor(request[key], device=device).reshape(1, 3, 1, 1)
            for key in ("mean", "std")
        )
        self._autocast = (
            contextlib.nullcontext
            if request["dtype"] == "float32"
            else lambda: torch.autocast(device.type, getattr(torch, request["dtype"]))
        )
        how = self._first_step(request["kind"] != "torch_eager")
        name = f"timm resnet{plain.depth}" if request["kind"] == "timm" else plain.name
        place = f"CPU, {request['threads']} threads"
        if self._cuda:
            place = torch.cuda.get_device_name()
        self.what = f"{name}, PyTorch {torch.__version__}, {how}, {place}"

    def _first_step(self, compiled: bool) -> str:
        """Runs a step, compiled if that works, and tells how."""
        disabled = [name for name in COMPILE_SWITCHES if os.environ.get(name) == "1"]
        if compiled and disabled:
            self.seconds(1)
            return f"eager ({disabled[0]}=1)"
        if compiled:
            try:
                self._called = torch.compile(self.network)
                self.seconds(1)
                return "compiled"
            except torch.OutOfMemoryError:
                raise
            # Whatever the compiler, or the compiler's compiler, cannot do here.
            except Exception as error:
                self._called, kind = self.network, type(error).__name__
                self.seconds(1)
                return f"eager (torch.compile: {kind}: {first_line(error)[:80]})"
        self.seconds(1)
        return "eager"

    def _advance(self) -> None:
        images = (self._images.float() / 255 - self._mean) / self._std
        with self._autocast():
            logits = self._called(images)
        loss = nn.functional.cross_entropy(
            logits.float(),
            self._labels,
            label_smoothing=self._request["label_smoothing"],
        )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if limit := self._request["optimizer"]["clip_norm"]:
            nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        self._optimizer.step()
        if self._average is not None:
            self._average.update_parameters(self.network)

    def seconds(self, steps: int) -> float:
        """Returns how long a step takes, on the mean of some, one after the other."""
        self._wait()
        begin = time.perf_counter()
        for _ in range(steps):
            self._advance()
        self._wait()
        return (time.perf_counter() - begin) / steps

    def peak(self) -> int | None:
        """Returns the bytes of a GPU that have been taken at once; None on a CPU."""
        return torch.cuda.max_memory_allocated() if self._cuda else None

    def rest(self) -> None:
        """Leaves a GPU's memory to others, but for what the next step starts from."""
        if self._cuda:
            torch.cuda.empty_cache()

    def wake(self) -> None:
        """Takes it again, by a step that is not timed."""
        if self._cuda:
            self._advance()

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answers a request, then times steps until no more are asked for.

    The first answer has `what` and `peak`, later ones `seconds` and `peak`; what goes
    wrong is told as `error`.
    """

    def answer(values: dict[str, Any]) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        step = TorchStep(json.loads(requests.readline()))
        told: dict[str, Any] = {"what": step.what}
        while True:
            step.rest()
            answer(told | {"peak": step.peak()})
            line = requests.readline()
            if not line:
                return
            step.wake()
            told = {"seconds": step.seconds(int(line))}
    except (UserError, torch.OutOfMemoryError) as error:
        answer({"error": first_line(error)})


if __name__ == "__main__":
    # What libraries print is no answer.
    stream, sys.stdout = sys.stdout, sys.stderr
    warnings.simplefilter("ignore")
    serve(sys.stdin, stream)
