"""Maps like those of tokenizers."""

import numpy as np


def softmax_maps(count, height, width, seed=0):
    logits = np.random.default_rng(seed).normal(size=(count, height * width))
    maps = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return maps.reshape(count, height, width).astype(np.float32)
