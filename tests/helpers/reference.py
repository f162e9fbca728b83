"""The paper's equations in NumPy and float64, and how to compare a module with them.

Nothing here imports the library. Each function quotes its equation; parameters are
found by their names in the library's tree, and each of them must be used.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

# --------------------------------------------------------------------- plain functions


def softmax(x, axis):
    """exp(x) / sum of exp(x) along `axis`."""
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def block_diagonal(blocks):
    """The dense matrix whose diagonal holds (groups, in / groups, out / groups)."""
    groups, inside, outside = blocks.shape
    dense = np.zeros((groups * inside, groups * outside))
    for g in range(groups):
        rows = slice(g * inside, (g + 1) * inside)
        dense[rows, g * outside : (g + 1) * outside] = blocks[g]
    return dense


def resize_matrix(source, target):
    """Bilinear weights (target, source): half-pixel centers, borders repeated."""
    weights = np.zeros((target, source))
    for i in range(target):
        place = (i + 0.5) * source / target - 0.5
        place = min(max(place, 0.0), source - 1.0)
        low = int(np.floor(place))
        high = min(low + 1, source - 1)
        weights[i, low] += 1.0 - (place - low)
        weights[i, high] += place - low
    return weights


def resize(x, height, width):
    """Resizes (batch, H, W, C) bilinearly without antialiasing."""
    rows = resize_matrix(x.shape[1], height)
    columns = resize_matrix(x.shape[2], width)
    return np.einsum("ih,jw,bhwc->bijc", rows, columns, x)


def convolve(x, kernel, stride):
    """Correlates (batch, H, W, C) with (k, k, C, C'), k // 2 zeros on every side."""
    size = kernel.shape[0]
    edge = size // 2
    padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    height = (x.shape[1] + 2 * edge - size) // stride + 1
    width = (x.shape[2] + 2 * edge - size) // stride + 1
    out = np.zeros((x.shape[0], height, width, kernel.shape[3]))
    for i in range(height):
        for j in range(width):
            window = padded[
                :, i * stride : i * stride + size, j * stride : j * stride + size
            ]
            out[:, i, j] = np.einsum("bhwc,hwco->bo", window, kernel)
    return out


def attend(query, key, value, heads):
    """Multi-head attention by loops over examples and heads.

    Args:
      query: (batch, L, C).
      key: (batch, N, C).
      value: (batch, N, C').
      heads: number of heads.

    Returns:
      (batch, L, C'), and the softmax over the N keys, (batch, heads, L, N).
    """
    batch, d, e = len(query), query.shape[2] // heads, value.shape[2] // heads
    out = np.zeros((batch, query.shape[1], value.shape[2]))
    weights = np.zeros((batch, heads, query.shape[1], key.shape[1]))
    for b in range(batch):
        for h in range(heads):
            q = query[b, :, h * d : (h + 1) * d]
            k = key[b, :, h * d : (h + 1) * d]
            weights[b, h] = softmax(q @ k.T / np.sqrt(d), 1)
            mixed = weights[b, h] @ value[b, :, h * e : (h + 1) * e]
            out[b, :, h * e : (h + 1) * e] = mixed
    return out, weights


def unit(x):
    """Divides the last axis by its L2 norm, leaving zero vectors alone."""
    norm = np.sqrt((x**2).sum(-1, keepdims=True))
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)


def squarest_grid(count):
    """Rows and columns, rows <= columns, of the most square grid of `count` cells."""
    rows = [r for r in range(1, count + 1) if count % r == 0 and r * r <= count]
    return max(rows), count // max(rows)


# ------------------------------------------------------------------------- parameters


class Scope:
    """The parameters and running statistics of a module and of those inside it.

    Attributes:
      train: whether normalization uses the batch.
      placement: where modules normalize.
      group_size: examples over which statistics are taken; 0 for the whole batch.
      used: paths of the parameters read so far.
      updates: running statistics after this call, by path.
      sown: attention maps, by path.
    """

    def __init__(self, variables, *, train=False, placement="tokens", group_size=0):
        self.params = traverse_util.flatten_dict(variables["params"])
        self.stats = traverse_util.flatten_dict(variables.get("batch_stats", {}))
        self.train, self.placement, self.group_size = train, placement, group_size
        self.path, self.used, self.updates, self.sown = (), set(), {}, {}

    def __truediv__(self, name):
        child = Scope.__new__(Scope)
        child.__dict__.update(self.__dict__)
        child.path = (*self.path, name)
        return child

    def get(self, *names):
        """Returns a parameter in float64, noting that it was used."""
        self.used.add((*self.path, *names))
        return np.asarray(self.params[(*self.path, *names)], np.float64)

    def linear(self, x, name):
        """x W without bias; a grouped W as a block-diagonal matrix."""
        kernel = self.get(name, "kernel")
        return x @ (block_diagonal(kernel) if kernel.ndim == 3 else kernel)

    def normalize(self, x, name):
        """Batch normalization of each group of consecutive examples."""
        scale, bias = self.get(name, "scale"), self.get(name, "bias")
        at = (*self.path, name)
        mean = np.asarray(self.stats[(*at, "mean")], np.float64)
        var = np.asarray(self.stats[(*at, "var")], np.float64)
        if not self.train:
            return (x - mean) / np.sqrt(var + 1e-5) * scale + bias
        size = self.group_size or len(x)
        out, means, variances = [], [], []
        for start in range(0, len(x), size):
            part = x[start : start + size]
            flat = part.reshape(-1, x.shape[-1])
            means.append(flat.mean(0))
            variances.append(((flat - means[-1]) ** 2).mean(0))
            out.append((part - means[-1]) / np.sqrt(variances[-1] + 1e-5))
        self.updates[(*at, "mean")] = 0.9 * mean + 0.1 * np.mean(means, 0)
        self.updates[(*at, "var")] = 0.9 * var + 0.1 * np.mean(variances, 0)
        return np.concatenate(out) * scale + bias

    def after_tokens(self, x, name):
        """Normalizes tokens or the projector's sum, as `tokens` and `every_map` do."""
        return x if self.placement == "none" else self.normalize(x, name)

    def map(self, x, name):
        """A 1 x 1 map, normalized only with `every_map`."""
        x = self.linear(x, name)
        return self.normalize(x, f"{name}_norm") if self.placement == "every_map" else x


# ------------------------------------------------------------------------------- parts


def position_encoding(p, maps, size=14, reductions=1):
    """Resize to S x S, n stride-2 3 x 3 convolutions, flatten, C_p x C_p map.

    `maps` is (batch, L, H, W), or (batch, heads, L, H, W): these are convolved heads to
    heads, and brought to one by a learned 1 x 1 map before they are flattened.
    """
    by_head = np.moveaxis(maps, 1, -1) if maps.ndim == 5 else maps[..., None]
    batch, count, height, width, heads = by_head.shape
    x = resize(by_head.reshape(batch * count, height, width, heads), size, size)
    for i in range(reductions):
        x = convolve(x, p.get(f"reduce{i + 1}", "kernel"), 2)
    if maps.ndim == 5:
        x = p.map(x, "heads")
    return p.map(x.reshape(batch, count, -1), "mix")


def token_map(p, pooled, maps, position):
    """[pooled, position] W_T."""
    if position:
        encoded = position_encoding(p / "position", maps)
        pooled = np.concatenate([pooled, encoded], -1)
    return p.after_tokens(p.linear(pooled, "map"), "norm")


def static_tokenizer(p, x, position=False, value_map=True):
    """A = softmax over pixels of X W_A / sqrt(C), V = X W_V, or X, T = A^T V W_T."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, -1, channels)
    a = softmax(p.map(x, "filter") / np.sqrt(channels), 1)
    value = p.map(x, "value") if value_map else x
    maps = np.moveaxis(a, 2, 1).reshape(batch, -1, height, width)
    p.sown[(*p.path, "coefficients")] = maps
    pooled = np.stack([a[b].T @ value[b] for b in range(batch)])
    return token_map(p / "token", pooled, maps, position)


def dynamic_tokenizer(p, x, tokens, replace, heads, position=False):
    """[T_b ; T_new], or T_new alone, from queries T_a W_Q, or T W_Q."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, -1, channels)
    half = tokens.shape[1] // 2 if replace == "half" else tokens.shape[1]
    query = p.map(tokens[:, :half], "query")
    key, value = p.map(x, "key"), p.map(x, "value")
    pooled, a = attend(query, key, value, heads)
    maps = a.reshape(batch, heads, half, height, width)
    p.sown[(*p.path, "coefficients")] = maps
    new = token_map(p / "token", pooled, maps, position)
    return np.concatenate([tokens[:, half:], new], 1) if replace == "half" else new


def clustering_tokenizer(p, x, count, iterations, position=False):
    """T = softmax over pixels of (X W_K)^T X, then W_T; W_K by Lloyd iterations."""
    batch, height, width, channels = x.shape
    starts = resize(x, *squarest_grid(count)).reshape(batch, count, channels)
    flat = x.reshape(batch, -1, channels)
    pooled, maps = [], []
    for pixels, start in zip(flat, starts, strict=True):
        sphere, centroids = unit(pixels), unit(start)
        for _ in range(iterations):
            owner = np.argmax(sphere @ centroids.T, 1)
            for k in range(count):
                mean = sphere[owner == k].mean(0) if (owner == k).any() else 0.0
                if np.any(mean):
                    centroids[k] = unit(mean)
        a = softmax(pixels @ centroids.T, 0)
        pooled.append(a.T @ pixels)
        maps.append(a.T.reshape(count, height, width))
    p.sown[(*p.path, "coefficients")] = np.stack(maps)
    return token_map(p / "token", np.stack(pooled), np.stack(maps), position)


def pooling_tokenizer(p, x, count):
    """The map resized to L positions, times W_T."""
    pooled = resize(x, *squarest_grid(count)).reshape(len(x), count, -1)
    return token_map(p / "token", pooled, None, False)


def transformer(p, tokens, heads, feed_forward, keep=(1.0, 1.0)):
    """T' = T + attention; T' + T' F, or T' + ReLU(T' F1) F2.

    `keep` holds the factors of the two branches.
    """
    key, query = p.map(tokens, "key"), p.map(tokens, "query")
    mixed, _ = attend(query, key, p.map(tokens, "value"), heads)
    tokens = tokens + keep[0] * mixed
    if feed_forward == "linear":
        branch = p.linear(tokens, "feed_forward")
        branch = p.after_tokens(branch, "feed_forward_norm")
    else:
        hidden = p.linear(tokens, "feed_forward1")
        hidden = np.maximum(p.after_tokens(hidden, "feed_forward1_norm"), 0.0)
        branch = p.linear(hidden, "feed_forward2")
        branch = p.after_tokens(branch, "feed_forward2_norm")
    return tokens + keep[1] * branch


def no_interaction(p, tokens):
    """T + T W: one C_T x C_T map and no exchange between tokens."""
    return tokens + p.after_tokens(p.linear(tokens, "map"), "norm")


def graph_interaction(p, tokens):
    """T + G T W with a learned L x L matrix G."""
    mixed = np.stack([p.get("adjacency") @ t for t in tokens])
    return tokens + p.after_tokens(p.linear(mixed, "map"), "norm")


def projector(p, x, tokens, heads):
    """X + softmax over L of (Q K^T / sqrt(d)) V, with a shortcut where C changes."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, -1, channels)
    query, key = p.map(x, "query"), p.map(tokens, "key")
    written, a = attend(query, key, p.map(tokens, "value"), heads)
    p.sown[(*p.path, "projection")] = np.moveaxis(a, 3, 2).reshape(
        batch, heads, -1, height, width
    )
    if query.shape[-1] != channels:
        x = p.map(x, "shortcut")
    out = p.after_tokens(x + written, "norm")
    return out.reshape(batch, height, width, -1)


def stage(
    p,
    x,
    *,
    modules,
    heads,
    count,
    first="static",
    later="dynamic",
    position=False,
    interaction="transformer",
    feed_forward="linear",
    transformers=None,
    with_projector=True,
    project_last=False,
    iterations=None,
):
    """Tokenize, interact, project; module after module on one map."""

    def tokenize(q, kind, x, tokens):
        if kind == "static":
            return static_tokenizer(q, x, position)
        if kind == "clustering":
            return clustering_tokenizer(q, x, count, iterations, position)
        if kind == "pooling":
            return pooling_tokenizer(q, x, count)
        replace = {"dynamic": "half", "recurrent": "all"}[kind]
        return dynamic_tokenizer(q, x, tokens, replace, heads, position)

    def interact(q, tokens):
        if interaction == "transformer":
            return transformer(q, tokens, heads, feed_forward)
        return {"none": no_interaction, "graph": graph_interaction}[interaction](
            q, tokens
        )

    interacting = modules if transformers is None else transformers
    tokens = None
    if not with_projector:
        tokens = tokenize(p / "tokenizer", first, x, None)
        for i in range(interacting):
            tokens = interact(p / f"interaction{i + 1}", tokens)
        return x, tokens
    for i in range(modules):
        q = p / f"module{i + 1}"
        tokens = tokenize(q / "tokenizer", later if i else first, x, tokens)
        if i < interacting:
            tokens = interact(q / "interaction", tokens)
        if i < modules - 1 or project_last:
            x = projector(q / "projector", x, tokens, heads)
    return x, tokens


# -------------------------------------------------------------------------- comparison


def normal(seed, *shape):
    """Standard normal numbers in float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomize(shapes, seed):
    """Fills a tree of variable shapes with random numbers that no initializer gives."""
    rng = np.random.default_rng(seed)
    filled = {}
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        noise = rng.normal(size=leaf.shape)
        if path[-1] == "var":
            noise = rng.uniform(0.5, 2.0, leaf.shape)
        elif path[-1] == "scale":
            noise = 1.0 + 0.3 * noise
        elif path[-1] in ("kernel", "adjacency"):
            # Blocks of a grouped map have three axes, the first of which is no input.
            fan_in = np.prod(leaf.shape[leaf.ndim == 3 : -1])
            noise = noise / np.sqrt(fan_in)
        filled[path] = noise.astype(leaf.dtype)
    return traverse_util.unflatten_dict(filled)


def variables_of(module, *inputs, seed=0):
    """Random variables of `module`, found by shape only: no initializer is run."""
    shapes = jax.eval_shape(
        lambda *a: module.init(jax.random.key(0), *a, train=False), *inputs
    )
    return randomize(shapes, seed)


def error(actual, expected):
    """Norm of the difference over the norm of `expected`."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30)


def settled(scope, seed):
    """Running statistics within a deviation of the batch's, as after some training.

    An evaluation with arbitrary ones would amplify rounding errors.
    """
    rng = np.random.default_rng(seed)
    stats = {}
    for path, old in scope.stats.items():
        mean, var = (*path[:-1], "mean"), (*path[:-1], "var")
        batch_mean = (scope.updates[mean] - 0.9 * scope.stats[mean]) / 0.1
        batch_var = (scope.updates[var] - 0.9 * scope.stats[var]) / 0.1
        if path[-1] == "mean":
            noise = rng.uniform(-1, 1, old.shape) * np.sqrt(np.maximum(batch_var, 0))
            stats[path] = (batch_mean + noise).astype(np.float32)
        else:
            factor = rng.uniform(0.5, 2.0, old.shape)
            stats[path] = (factor * np.maximum(batch_var, 0)).astype(np.float32)
    return traverse_util.unflatten_dict(stats)


def near(actual, expected, tolerance):
    """Asserts that the relative error is under `tolerance`."""
    found = error(actual, expected)
    assert found < tolerance, f"relative error {found:.2g}"


def check(
    module,
    function,
    *inputs,
    train,
    seed=0,
    tolerance=1e-5,
    by_inputs=True,
    **settings,
):
    """Asserts that a module equals its restatement on random variables.

    Compared are the output, the attention maps sown, the running statistics left
    behind, and, in training, the slope along a random direction; and each parameter
    must have been used. All of the module's are results of one program.

    Args:
      module: a module called as `module(*inputs, train=...)`.
      function: its restatement, `function(scope, *inputs)`.
      *inputs: float32 arrays.
      train: whether batch statistics are used.
      seed: seed of the variables.
      tolerance: of the relative error.
      by_inputs: whether the direction changes the inputs, or the parameters alone.
      **settings: of `Scope`.
    """
    double = [np.asarray(array, np.float64) for array in inputs]
    variables = variables_of(module, *inputs, seed=seed)
    scope = Scope(variables, train=True, **settings)
    if not train:
        function(scope, *double)
        variables["batch_stats"] = settled(scope, seed)
        scope = Scope(variables, **settings)
    expected = function(scope, *double)
    weights = [
        normal(100 + i, *np.shape(leaf))
        for i, leaf in enumerate(jax.tree.leaves(expected))
    ]

    def loss(params, inputs):
        collections = ["intermediates", "batch_stats"]
        out, state = module.apply(
            {**variables, "params": params}, *inputs, train=train, mutable=collections
        )
        pairs = zip(jax.tree.leaves(out), weights, strict=True)
        return sum(jnp.sum(leaf * weight) for leaf, weight in pairs), (out, state)

    run = jax.grad(loss, (0, 1), has_aux=True) if train else loss
    gradients, (out, state) = jax.jit(run)(variables["params"], inputs)
    for a, e in zip(jax.tree.leaves(out), jax.tree.leaves(expected), strict=True):
        assert a.dtype == jnp.float32
        near(a, e, tolerance)
    assert scope.used == set(scope.params)

    maps = traverse_util.flatten_dict(state.get("intermediates", {}))
    assert set(maps) == set(scope.sown)
    for path, value in scope.sown.items():
        near(maps[path][0], value, tolerance)

    after = traverse_util.flatten_dict(state.get("batch_stats", {}))
    if train and scope.placement != "none":
        assert set(after) == set(scope.updates)
    for path, value in after.items():
        near(value, scope.updates[path] if train else scope.stats[path], tolerance)

    if train:
        given = variables["params"], double if by_inputs else []
        along = jax.tree.map(lambda a: normal(8, *a.shape), given)

        def moved(step):
            params, moved_inputs = jax.tree.map(
                lambda a, d: np.float64(a) + step * d, given, along
            )
            scope = Scope({**variables, "params": params}, train=True, **settings)
            out = jax.tree.leaves(function(scope, *(moved_inputs or double)))
            return sum(np.sum(o * w) for o, w in zip(out, weights, strict=True))

        slope = (moved(1e-6) - moved(-1e-6)) / 2e-6
        found = gradients[0], list(gradients[1]) if by_inputs else []
        terms = jax.tree.map(lambda g, d: np.float64(g) * d, found, along)
        total = sum(np.sum(term) for term in jax.tree.leaves(terms))
        size = sum(np.sum(np.abs(term)) for term in jax.tree.leaves(terms))
        assert abs(total - slope) < 1e-4 * size, (total, slope)


def sown(module, variables, *inputs):
    """The maps that a module sows, by path."""
    _, state = jax.jit(
        lambda v, *a: module.apply(v, *a, train=False, mutable=["intermediates"])
    )(variables, *inputs)
    maps = traverse_util.flatten_dict(state.get("intermediates", {}), sep="/")
    return {path: np.asarray(value) for path, (value,) in maps.items()}


def check_bfloat16(make, *inputs, tolerance=0.05):
    """Asserts that a module computes in bfloat16 where it should.

    Parameters, statistics and attention maps are float32; the output is bfloat16 and
    near that of float32.

    Args:
      make: `make(dtype)` returns the module.
      *inputs: float32 arrays.
      tolerance: of the relative error between the two types.
    """
    half, full = make(jnp.bfloat16), make(jnp.float32)
    variables = variables_of(half, *inputs, seed=2)
    for leaf in jax.tree.leaves(variables):
        assert leaf.dtype == np.float32
    (out, state), expected = jax.jit(
        lambda v, *a: (
            half.apply(v, *a, train=False, mutable=["intermediates"]),
            full.apply(v, *a, train=False),
        )
    )(variables, *inputs)
    for a, e in zip(jax.tree.leaves(out), jax.tree.leaves(expected), strict=True):
        assert a.dtype == jnp.bfloat16
        assert 0.0 < error(a, e) < tolerance
    for maps in jax.tree.leaves(state.get("intermediates", {})):
        assert maps.dtype == jnp.float32


def check_outputs(module, *inputs, count=1):
    """Asserts that maps are not computed unless they are collected.

    The plain program returns `count` arrays, and variables hold no maps.
    """
    shapes = jax.eval_shape(
        lambda *a: module.init(jax.random.key(0), *a, train=False), *inputs
    )
    assert set(shapes) <= {"params", "batch_stats"}
    plain = jax.make_jaxpr(lambda v, *a: module.apply(v, *a, train=False))
    assert len(plain(shapes, *inputs).jaxpr.outvars) == count
