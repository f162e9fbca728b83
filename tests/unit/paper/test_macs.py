"""Counted multiply-adds and parameters against arithmetic by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from vt_flax.models import create_model
from vt_flax.nn.layers import PRODUCT_SCOPE, Conv, Linear, resize
from vt_flax.paper import macs


class Probe(nn.Module):
    """A stem of a given kind, and a head of 5 classes, for images (1, 12, 20, 3)."""

    kind: str

    @nn.compact
    def __call__(self, x, train=False):
        if self.kind == "conv":
            x = Conv(8, 3, 2, name="stem")(x)
        elif self.kind == "grouped_conv":
            x = nn.Conv(6, (5, 3), feature_group_count=3, name="stem")(x)
        elif self.kind == "valid_conv":
            x = nn.Conv(4, (3, 3), padding="VALID", use_bias=False, name="stem")(x)
        elif self.kind == "grouped_map":
            x = Linear(6, 3, name="stem")(x)
        elif self.kind == "norm":
            x = nn.BatchNorm(use_running_average=True, name="stem")(x)
            x = nn.relu(x) + 1.0
        elif self.kind == "resize":
            x = resize(x, 7, 9)
        return nn.Dense(5, name="head")(x.mean((1, 2)))


@pytest.mark.parametrize(
    "kind,stem_macs,stem_params,features",
    [
        # Stride 2 and symmetric padding: 6 x 10 pixels.
        ("conv", 6 * 10 * 8 * 3 * 9, 3 * 8 * 9, 8),
        # Each of 6 outputs reads 1 input; the bias is a parameter, not a product.
        ("grouped_conv", 12 * 20 * 6 * 1 * 15, 6 * 15 + 6, 6),
        ("valid_conv", 10 * 18 * 4 * 3 * 9, 3 * 4 * 9, 4),
        ("grouped_map", 12 * 20 * 3 * (1 * 2), 3 * 1 * 2, 6),
        # Scale and bias; running statistics are no parameters.
        ("norm", 0, 2 * 3, 3),
    ],
)
def test_layers(kind, stem_macs, stem_params, features):
    counts = macs.count(Probe(kind), (12, 20))
    assert counts.macs == {"stem": stem_macs, "head": features * 5}
    assert counts.params == {"stem": stem_params, "head": features * 5 + 5}
    assert counts.total_macs == stem_macs + features * 5
    assert counts.total_params == stem_params + features * 5 + 5


def test_interpolation_is_not_counted():
    counts = macs.count(Probe("resize"), (12, 20))
    assert counts.macs == {"head": 15} and counts.params == {"head": 20}


class Attention(nn.Module):
    """Two heads of 6 channels over all pixels, outside every submodule."""

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(x.shape[0], -1, 3)
        qkv = nn.Dense(36, use_bias=False, name="qkv")(x)
        q, k, v = jnp.split(qkv.reshape(*x.shape[:2], 2, 18), 3, -1)
        weights = nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        out = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return nn.Dense(4, name="head")(out.reshape(*x.shape[:2], 12))


def test_attention_products_are_counted():
    height, width = 4, 5
    pixels = height * width
    counts = macs.count(Attention(), (height, width))
    # Products in no part with parameters have no name.
    assert counts.params == {"qkv": 3 * 36, "": 0, "head": 12 * 4 + 4}
    assert counts.macs == {
        "qkv": pixels * 3 * 36,
        "": 2 * (2 * pixels * pixels * 6),
        "head": pixels * 12 * 4,
    }
    assert counts.total_macs == sum(counts.macs.values())


class Nested(nn.Module):
    """Submodules of submodules, one of them shared by two calls and under jit."""

    @nn.compact
    def __call__(self, x, train=False):
        class Part(nn.Module):
            @nn.compact
            def __call__(self, x):
                linear = nn.Dense(3, use_bias=False, name="head")
                return linear(jax.jit(nn.relu)(linear(x)))

        x = nn.jit(Part)(name="body")(x.mean((1, 2)))
        return nn.Dense(2, use_bias=False, name="head")(x)


def test_parts_are_the_first_level_of_the_modules():
    """Shared weights are learned once and used twice; `body/head` is of the body."""
    counts = macs.count(Nested(), (4, 4))
    assert counts.params == {"body": 9, "head": 6}
    assert counts.macs == {"body": 18, "head": 6}


def amounts(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    jaxpr = jax.make_jaxpr(function)(*arrays).jaxpr
    return sum(amount for _, amount in macs.products(jaxpr))


def test_products_by_hand():
    assert amounts(lambda a, b: a @ b, (4, 5), (5, 6)) == 4 * 5 * 6
    assert amounts(lambda a, b: a @ b, (7, 4, 5), (7, 5, 6)) == 7 * 4 * 5 * 6
    assert amounts(lambda a, b: a @ b, (5,), (5,)) == 5
    # Two axes are summed over, and one belongs to the batch.
    assert (
        amounts(
            lambda a, b: jnp.einsum("bijk,bjkl->bil", a, b), (2, 3, 4, 5), (2, 4, 5, 6)
        )
        == 2 * 3 * 4 * 5 * 6
    )
    assert amounts(lambda a, b: a * b + jnp.exp(a).sum(), (4, 5), (4, 5)) == 0


def test_marked_multiplications_are_products():
    def attend(a, b):
        with jax.named_scope(PRODUCT_SCOPE):
            weighted = a * b + jnp.exp(a)
        return (weighted * 2 * b).sum()

    assert amounts(attend, (4, 5), (4, 5)) == 4 * 5
    # Of a vector for each row as many as of a matrix product.
    assert amounts(attend, (4, 5), (3, 4, 1)) == 3 * 4 * 5

    def repeated(a, b):
        return jax.lax.scan(lambda c, _: (c + attend(a, b), None), 0.0, None, 7)[0]

    assert amounts(repeated, (4, 5), (4, 5)) == 7 * 4 * 5


def test_a_scan_counts_for_its_length():
    def run(x, w):
        return jax.lax.scan(lambda c, _: (c @ w, c.sum()), x, None, length=7)

    assert amounts(run, (4, 5), (5, 5)) == 7 * 4 * 5 * 5

    def nested(x, w):
        def outer(c, _):
            return run(c, w)[0], c @ w

        return jax.lax.scan(outer, x, None, length=3)

    assert amounts(nested, (4, 5), (5, 5)) == 3 * (7 + 1) * 4 * 5 * 5


def test_a_loop_of_unknown_length_is_refused():
    def run(x, w):
        return jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ w, x)

    with pytest.raises(NotImplementedError, match="while loop"):
        amounts(run, (4, 5), (5, 5))

    def harmless(x):
        return jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, x)

    assert amounts(harmless, (4, 5)) == 0


def test_products_inside_calls_are_counted():
    assert amounts(jax.jit(lambda a, b: a @ b), (4, 5), (5, 6)) == 120
    assert amounts(jax.checkpoint(lambda a, b: a @ b), (4, 5), (5, 6)) == 120
    assert amounts(jax.vmap(lambda a, b: a @ b), (3, 4, 5), (3, 5, 6)) == 360


def test_totals_are_the_sums_of_the_parts():
    options = {"width": 8, "token_channels": 32, "group_channels": 8, "heads": 2}
    model = create_model("vt_resnet18", num_classes=4, **options)
    counts = macs.count(model, (64, 64))
    parts = ["stem", "stage2", "stage3", "stage4", "stage5", "head"]
    assert list(counts.macs) == list(counts.params) == parts
    # The formulation does not matter.
    assert macs.count(model.clone(formulation="folded"), (64, 64)) == counts
    images = jnp.zeros((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    assert counts.total_params == sum(
        leaf.size for leaf in jax.tree.leaves(shapes["params"])
    )


def halved(sides):
    return tuple(-(-side // 2) for side in sides)


def by_hand(kind, sides, width, classes):
    """Multiply-adds and parameters of a pyramid and its head on ResNet-18.

    256 and 128 channels; 8 tokens of 1024 channels a level; one transformer of 8 groups
    with a linear feed-forward map. After each convolution, and after each token map, a
    scale and a bias for every channel.
    """
    pixels = []
    sides = halved(halved(sides))
    for _ in range(4):
        pixels.append(sides[0] * sides[1])
        sides = halved(sides)
    c = [width * 2**i for i in range(4)]
    macs = sum(p * channels * 256 for p, channels in zip(pixels, c, strict=True))
    params = sum(channels * 256 + 2 * 256 for channels in c)
    for p in pixels:
        if kind == "fpn":
            macs += p * 9 * 256 * 256
            params += 9 * 256 * 256 + 2 * 256
            continue
        # Filters, coefficients times pixels; the token map.
        macs += p * 256 * 8 + p * 8 * 256 + 8 * 256 * 1024
        params += 256 * 8 + 256 * 1024 + 2 * 1024
        # Grouped query, logits, weights times values; key and value maps.
        macs += p * 256 * 16 + p * 8 * 256 + p * 8 * 256 + 2 * (8 * 1024 * 256)
        params += 256 * 16 + 2 * (1024 * 256) + 2 * 256
    if kind == "vt_fpn":
        grouped = 1024 * (512 + 512 + 1024) // 8
        macs += 32 * grouped + 32 * 32 * 512 + 32 * 32 * 1024 + 32 * 1024 * 1024
        params += grouped + 1024 * 1024 + 2 * 1024
    head_macs = pixels[0] * 128 * classes
    head_params = 128 * classes + classes
    # A level's convolutions are at its own size and at those on the way to the finest.
    for places in ([0], [1], [2, 1], [3, 2, 1]):
        for i, place in enumerate(places):
            inside = 128 if i else 256
            head_macs += pixels[place] * 9 * inside * 128
            head_params += 9 * inside * 128 + 2 * 128
    return {"fpn": (macs, params), "head": (head_macs, head_params)}


@pytest.mark.parametrize("kind", ["fpn", "vt_fpn"])
def test_pyramids(kind):
    """Interpolations, of which odd sizes have more, are not counted."""
    sides = (75, 141)
    model = create_model(f"{kind}_resnet18", width=16, num_classes=7)
    counts = macs.count(model, sides)
    for part, (products, params) in by_hand(kind, sides, 16, 7).items():
        assert counts.macs[part] == products
        assert counts.params[part] == params
    plain = macs.count(create_model("resnet18", width=16), sides)
    order = ["stem", "stage2", "stage3", "stage4", "stage5"]
    assert list(counts.macs) == [*order, "fpn", "head"]
    for part in order:
        assert counts.macs[part] == plain.macs[part]
        assert counts.params[part] == plain.params[part]
