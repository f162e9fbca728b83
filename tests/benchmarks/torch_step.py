"""A training step of a plain ResNet in PyTorch, to be timed beside ours."""

import contextlib
import dataclasses
import os
import time
import warnings

import jax
import numpy as np
import torch
from ml_collections import ConfigDict
from plain import plain_resnet
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch_network import TorchResNet

from vt_flax.training.tasks import task_of


def make_optimizer(network: nn.Module, config: ConfigDict) -> torch.optim.Optimizer:
    """Returns PyTorch's optimizer for a section `optimizer`; vectors do not decay."""
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    others = [p for p in network.parameters() if p.ndim > 1]
    groups = [
        {"params": others, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    learning_rate, momentum = 1e-3, config.momentum
    if config.name == "sgd":
        return torch.optim.SGD(
            groups, learning_rate, momentum, nesterov=config.nesterov, fused=True
        )
    if config.name == "adamw":
        betas = (momentum, config.decay)
        return torch.optim.AdamW(
            groups, learning_rate, betas, config.epsilon, fused=True
        )
    # Both of our variants cost what PyTorch's single one does.
    return torch.optim.RMSprop(
        groups, learning_rate, config.decay, config.epsilon, momentum=momentum
    )


class TorchStep:
    """A training step on noise: normalization, both passes, optimizer and EMA.

    Channels last, and with automatic mixed precision where the dtype is not float32.

    Args:
      config: a resolved configuration.
      batch: batch size.
      compiled: whether to use `torch.compile`.
      threads: CPU threads; by default as many cores as this process may run on.

    Attributes:
      network: the network that is trained.
      ema: its average in PyTorch, or None.
      what: version, kind of execution and device.
    """

    def __init__(
        self, config: ConfigDict, batch: int, compiled: bool, threads: int = 0
    ):
        device = torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")
        torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
        # As JAX multiplies float32 on GPUs.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(0)
        options = dataclasses.asdict(plain_resnet(config))
        del options["depth"]
        network = TorchResNet(**options)
        network = network.to(device, memory_format=torch.channels_last).train()
        # The called network may be the compiled one.
        self.network = self._called = network
        self._clip_norm = config.optimizer.clip_norm
        self._label_smoothing = config.loss.label_smoothing
        self._optimizer = make_optimizer(network, config.optimizer)
        self.ema = None
        if config.ema.decay:
            average = get_ema_multi_avg_fn(config.ema.decay)
            self.ema = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
        shape = (batch, *task_of(config).input_size(config), 3)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        # Seen as (batch, 3, H, W), the images lie with their channels last.
        self._images = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
        self._labels = torch.zeros(batch, dtype=torch.long, device=device)
        self._mean, self._std = (
            torch.tensor(list(config.data[key]), device=device).reshape(1, 3, 1, 1)
            for key in ("mean", "std")
        )
        dtype = config.model.dtype
        self._autocast = (
            contextlib.nullcontext
            if dtype == "float32"
            else lambda: torch.autocast(device.type, getattr(torch, dtype))
        )
        self._cuda, self._compiled = device.type == "cuda", compiled
        place = f"CPU, {torch.get_num_threads()} threads"
        if self._cuda:
            place = torch.cuda.get_device_name()
        how = "compiled" if compiled else "eager"
        self.what = f"PyTorch {torch.__version__}, {how}, {place}"

    def start(self) -> None:
        """Runs a first step, which compiles the network."""
        if self._compiled:
            self._called = torch.compile(self.network)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.seconds()

    def _advance(self) -> None:
        images = (self._images.float() / 255 - self._mean) / self._std
        with self._autocast():
            logits = self._called(images)
        loss = nn.functional.cross_entropy(
            logits.float(), self._labels, label_smoothing=self._label_smoothing
        )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self._clip_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self._clip_norm)
        self._optimizer.step()
        if self.ema is not None:
            self.ema.update_parameters(self.network)

    def seconds(self, steps: int = 1) -> float:
        """Runs some steps and returns the mean seconds per step."""
        self._wait()
        begin = time.perf_counter()
        for _ in range(steps):
            self._advance()
        self._wait()
        return (time.perf_counter() - begin) / steps

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()
