"""ResNet equals an independent one in PyTorch, and has the shapes of the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from model_variables import images_of, randomized

from vt_flax.errors import UserError
from vt_flax.models.resnet import Backbone, BasicBlock, BottleneckBlock, ResNet

WIDTH, CLASSES = 8, 7


# --------------------------------------------------------------------- beside PyTorch


def torch_network(torch, sizes, bottleneck, variant):
    """A residual network written as in torchvision, or as in Detectron2 (msra)."""
    nn = torch.nn

    def convolution(inside, outside, kernel, stride):
        return nn.Conv2d(
            inside, outside, kernel, stride, padding=kernel // 2, bias=False
        )

    class Block(nn.Module):
        def __init__(self, inside, width, stride):
            super().__init__()
            outside = 4 * width if bottleneck else width
            if not bottleneck:
                plan = [(inside, width, 3, stride), (width, width, 3, 1)]
            elif variant == "torchvision":
                plan = [
                    (inside, width, 1, 1),
                    (width, width, 3, stride),
                    (width, outside, 1, 1),
                ]
            else:
                plan = [
                    (inside, width, 1, stride),
                    (width, width, 3, 1),
                    (width, outside, 1, 1),
                ]
            self.convs = nn.ModuleList(convolution(*p) for p in plan)
            self.norms = nn.ModuleList(nn.BatchNorm2d(p[1]) for p in plan)
            self.shortcut = None
            if stride != 1 or inside != outside:
                self.shortcut = convolution(inside, outside, 1, stride)
                self.shortcut_norm = nn.BatchNorm2d(outside)

        def forward(self, x):
            y = x
            for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
                y = norm(conv(y if i == 0 else torch.relu(y)))
            if self.shortcut is not None:
                x = self.shortcut_norm(self.shortcut(x))
            return torch.relu(x + y)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = convolution(3, WIDTH, 7, 2)
            self.norm = nn.BatchNorm2d(WIDTH)
            self.pool = nn.MaxPool2d(3, 2, padding=1)
            self.stages = nn.ModuleList()
            inside = WIDTH
            for i, size in enumerate(sizes):
                width, blocks = WIDTH * 2**i, nn.ModuleList()
                for j in range(size):
                    blocks.append(Block(inside, width, 2 if i and not j else 1))
                    inside = 4 * width if bottleneck else width
                self.stages.append(blocks)
            self.head = nn.Linear(inside, CLASSES)

        def forward(self, x):
            x = self.pool(torch.relu(self.norm(self.conv(x))))
            for stage in self.stages:
                for block in stage:
                    x = block(x)
            return self.head(x.mean((2, 3)))

    return Network()


def copy_weights(torch, network, variables):
    """Writes flax variables into the PyTorch network; every one must find its place."""
    params = traverse_util.flatten_dict(variables["params"])
    stats = traverse_util.flatten_dict(variables["batch_stats"])

    def put(tensor, value):
        assert tuple(tensor.shape) == value.shape
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(np.array(value)))

    def convolution(module, *path):
        put(module.weight, params.pop((*path, "kernel")).transpose(3, 2, 0, 1))

    def norm(module, *path):
        put(module.weight, params.pop((*path, "scale")))
        put(module.bias, params.pop((*path, "bias")))
        put(module.running_mean, stats.pop((*path, "mean")))
        put(module.running_var, stats.pop((*path, "var")))

    convolution(network.conv, "stem", "conv")
    norm(network.norm, "stem", "norm")
    for i, stage in enumerate(network.stages):
        for j, block in enumerate(stage):
            at = (f"stage{i + 2}", f"block{j + 1}")
            for k, (c, n) in enumerate(zip(block.convs, block.norms, strict=True), 1):
                convolution(c, *at, f"conv{k}")
                norm(n, *at, f"norm{k}")
            if block.shortcut is not None:
                convolution(block.shortcut, *at, "shortcut")
                norm(block.shortcut_norm, *at, "shortcut_norm")
    put(network.head.weight, params.pop(("head", "kernel")).T)
    put(network.head.bias, params.pop(("head", "bias")))
    assert not params and not stats


@pytest.mark.parametrize(
    "sizes,bottleneck,variant",
    [
        ((2, 1, 1, 1), False, "torchvision"),
        ((1, 2, 1, 1), True, "torchvision"),
        ((1, 1, 1, 1), True, "msra"),
    ],
)
def test_equals_pytorch(sizes, bottleneck, variant, torch):
    model = ResNet(sizes, bottleneck, CLASSES, WIDTH, variant=variant)
    variables = randomized(model, images_of(1, 64, 64))
    network = torch_network(torch, sizes, bottleneck, variant)
    copy_weights(torch, network, variables)

    def in_torch(images):
        with torch.no_grad():
            return network(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()

    network.eval()
    for size in ((64, 64), (65, 97)):
        images = images_of(2, *size)
        logits = jax.jit(model.apply)(variables, images)
        expected = in_torch(images)
        assert np.std(expected) > 0.1
        np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-4)
    if sizes[0] == 1 and variant == "torchvision":
        network.train()
        images = images_of(4, 65, 97)
        sizes_of = count_numbers(torch, network)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        expected = in_torch(images)
        logits, state = jax.jit(
            lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])
        )(variables, images)
        np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-4)

        # PyTorch's running variance is unbiased, ours is not: n / (n - 1) apart.
        again = torch_network(torch, sizes, bottleneck, variant)
        copy_weights(torch, again, {**variables, **jax.device_get(state)})
        ours, theirs = again.state_dict(), network.state_dict()
        for name, count in sizes_of.items():
            mean, var = f"{name}.running_mean", f"{name}.running_var"
            np.testing.assert_allclose(ours[mean], theirs[mean], atol=2e-5)
            new = (theirs[var] - 0.9 * before[var]) * (count - 1) / count
            np.testing.assert_allclose(ours[var], 0.9 * before[var] + new, rtol=1e-4)


def count_numbers(torch, network):
    """Numbers of pixels in each BatchNorm's batch, known after a forward pass."""
    counts = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(
                lambda _, inputs, __, name=name: counts.update(
                    {name: inputs[0].numel() // inputs[0].shape[1]}
                )
            )
    return counts


# ---------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("bottleneck,factor", [(False, 1), (True, 4)])
@pytest.mark.parametrize("stem,strides", [("imagenet", 4), ("small", 1)])
@pytest.mark.parametrize("size", [(64, 64), (65, 97), (224, 224)])
def test_features_have_the_strides_of_their_stages(
    stem, strides, size, bottleneck, factor
):
    model = ResNet((1, 1, 1, 1), bottleneck, CLASSES, WIDTH, stem)
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    maps = jax.eval_shape(
        lambda v, x: model.apply(v, x, features=True), variables, images
    )
    assert list(maps) == ["C2", "C3", "C4", "C5"]
    for i, name in enumerate(maps):
        stride = strides * 2**i
        sides = [-(-side // stride) for side in size]
        assert maps[name].shape == (2, *sides, WIDTH * factor * 2**i), name
    logits = jax.eval_shape(model.apply, variables, images)
    assert logits.shape == (2, CLASSES)


def test_stems():
    images = images_of(1, 32, 32)
    for stem, kernel in (("imagenet", (7, 7)), ("small", (3, 3))):
        model = ResNet((1, 1, 1, 1), False, CLASSES, WIDTH, stem)
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)
        found = shapes["params"]["stem"]["conv"]["kernel"].shape
        assert found == (*kernel, 3, WIDTH)


@pytest.mark.parametrize("variant,strided", [("torchvision", 2), ("msra", 1)])
def test_where_a_bottleneck_strides(variant, strided):
    """A strided 1 x 1 sees every second pixel only; a strided 3 x 3 sees them all."""
    block = BottleneckBlock(4, 2, variant=variant)
    x = np.zeros((1, 6, 6, 16), np.float32)
    variables = jax.jit(lambda k, x: block.init(k, x, train=False))(
        jax.random.key(0), x
    )
    odd = x.copy()
    odd[:, 1::2, 1::2] = 1.0
    apply = jax.jit(lambda v, x: block.apply(v, x, train=False))
    differ = np.any(apply(variables, odd) != apply(variables, x))
    assert differ == (strided == 2)


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_zero_init_residual_starts_as_the_identity(bottleneck, train):
    kind = BottleneckBlock if bottleneck else BasicBlock
    block, channels = kind(4, zero_init_residual=True), 4 * kind.expansion
    x = np.random.default_rng(0).normal(size=(2, 5, 4, channels)).astype(np.float32)
    variables = jax.jit(lambda k, x: block.init(k, x, train=False))(
        jax.random.key(0), x
    )
    out, _ = jax.jit(
        lambda v, x: block.apply(v, x, train=train, mutable=["batch_stats"])
    )(variables, x)
    np.testing.assert_array_equal(out, np.maximum(x, 0.0))
    scales = {
        path: np.asarray(scale)
        for path, scale in traverse_util.flatten_dict(variables["params"]).items()
        if path[-1] == "scale"
    }
    for (name, _), scale in scales.items():
        last = name == ("norm3" if bottleneck else "norm2")
        np.testing.assert_array_equal(scale, 0.0 if last else 1.0)


def test_zero_init_residual_in_a_whole_network():
    model = ResNet((1, 1, 1, 1), True, CLASSES, WIDTH, zero_init_residual=True)
    variables = jax.jit(model.init)(jax.random.key(0), images_of(1, 32, 32))
    for path, value in traverse_util.flatten_dict(variables["params"]).items():
        if path[-1] == "scale":
            zero = path[-2] == "norm3"
            np.testing.assert_array_equal(value, 0.0 if zero else 1.0)


def test_convolutions_start_with_the_variance_of_their_fan_out():
    """He et al. (2015): 2 / (k k C_out), as in torchvision."""
    block = BottleneckBlock(64, 2)
    variables = jax.jit(lambda k, x: block.init(k, x, train=False))(
        jax.random.key(0), jnp.zeros((1, 4, 4, 64))
    )
    for path, value in traverse_util.flatten_dict(variables["params"]).items():
        if path[-1] == "kernel":
            kernel, _, _, outside = value.shape
            assert np.var(value) == pytest.approx(
                2 / (kernel**2 * outside), rel=0.05
            ), path


# ------------------------------------------------------------------------- behavior


def test_survival_follows_the_linear_rule_over_all_blocks():
    model = Backbone((2, 1, 1, 1), False, survival_probability=0.5)
    found = [model.survival_probabilities(i) for i in range(4)]
    for one, expected in zip(found, [[0.9, 0.8], [0.7], [0.6], [0.5]], strict=True):
        np.testing.assert_allclose(one, expected)


def test_dropped_blocks_are_their_shortcuts():
    """Where a block is dropped, each example is ReLU of the shortcut."""
    x = np.random.default_rng(0).normal(size=(1, 3, 3, 4)).astype(np.float32)
    x = np.repeat(x, 16, axis=0)
    block = BasicBlock(4, survival_probability=0.5)
    whole = BasicBlock(4)
    variables = jax.jit(lambda k, x: block.init(k, x, train=False))(
        jax.random.key(0), x
    )
    out, full = jax.jit(
        lambda v, x, key: [
            b.apply(v, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"])[0]
            for b in (block, whole)
        ]
    )(variables, x, jax.random.key(1))
    shortcut = np.maximum(x, 0.0)
    dropped = [np.array_equal(o, s) for o, s in zip(out, shortcut, strict=True)]
    assert 0 < sum(dropped) < 16
    assert not np.allclose(full[0], shortcut[0])
    same = out[np.flatnonzero(np.logical_not(dropped))]
    np.testing.assert_array_equal(same, np.broadcast_to(same[:1], same.shape))


def test_bfloat16_keeps_float32_parameters_and_logits():
    model = ResNet((1, 1, 1, 1), False, CLASSES, WIDTH, "small", dtype=jnp.bfloat16)
    images = images_of(2, 16, 16)
    variables = randomized(model, images)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    full = model.clone(dtype=jnp.float32)
    logits, expected = jax.jit(lambda v, x: (model.apply(v, x), full.apply(v, x)))(
        variables, images
    )
    assert logits.dtype == jnp.float32
    assert 0 < np.linalg.norm(logits - expected) < 0.05 * np.linalg.norm(expected)
    maps = jax.eval_shape(
        lambda v, x: model.apply(v, x, features=True), variables, images
    )
    assert {leaf.dtype for leaf in maps.values()} == {jnp.dtype("bfloat16")}


def test_gradients_are_finite():
    model = ResNet((1, 1, 1, 1), True, CLASSES, 4, "small")
    images = images_of(2, 16, 16)
    variables = randomized(model, images)

    def loss(params, images):
        out, _ = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return -jax.nn.log_softmax(out)[:, 0].mean()

    found = jax.jit(jax.grad(loss, (0, 1)))(variables["params"], images)
    for leaf in jax.tree.leaves(found):
        assert np.all(np.isfinite(leaf))
    assert np.any(np.asarray(found[0]["head"]["kernel"]) != 0)


@pytest.mark.parametrize("shape", [(2, 32, 32), (2, 32, 32, 1), (2, 3, 32, 32)])
def test_images_of_another_layout_are_refused(shape):
    model = ResNet((1, 1, 1, 1), False)
    with pytest.raises(UserError, match="expected .batch, height, width, 3"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
