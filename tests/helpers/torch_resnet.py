"""The package's ResNet in PyTorch, and others that the weights of files belong to.

With `gate` it is timm's SE-ResNet, whose gates are `multiple`s wide. `variant` is where
a bottleneck strides.
"""

import numpy as np

SIZES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def torch_resnet(
    torch,
    depth,
    *,
    sizes=None,
    width=64,
    classes=1000,
    variant="torchvision",
    gate=0,
    multiple=1,
):
    # Without PyTorch tests skip; it imports that.
    from torch_network import Block, TorchResNet

    nn = torch.nn

    class Gate(nn.Module):
        def __init__(self, channels):
            super().__init__()
            inside = max(multiple, channels // gate // multiple * multiple)
            self.fc1 = nn.Conv2d(channels, inside, 1)
            self.fc2 = nn.Conv2d(inside, channels, 1)

        def forward(self, x):
            y = torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))
            return x * torch.sigmoid(self.fc2(y))

    class OtherBlock(Block):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            if self.bottleneck and variant == "msra":
                first, second = self.conv1, self.conv2
                first.stride, second.stride = second.stride, first.stride
            self.se = Gate(self.outside) if gate else nn.Identity()

        def residual(self, x):
            return self.se(super().residual(x))

    # Whose numbers `randomize` makes: PyTorch's own would be drawn in vain.
    with torch.device("meta"):
        network = TorchResNet(
            sizes or SIZES[depth], depth >= 50, classes, width, block=OtherBlock
        )
    return network.to_empty(device="cpu").eval()


def randomize(torch, network, seed=0):
    """Fills a network with numbers unlike those of any start; logits stay near one."""
    rng = np.random.default_rng(seed)
    for name, tensor in network.state_dict().items():
        shape = tuple(tensor.shape)
        value = rng.standard_normal(shape, np.float32)
        if name.endswith("running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("weight") and len(shape) > 1:
            value /= np.sqrt(np.prod(shape[1:]))
        elif name.endswith(("bn2.weight", "bn3.weight")):
            value = 0.5 + 0.1 * value
        elif name.endswith("weight"):
            value = 1 + 0.2 * value
        elif name.endswith("num_batches_tracked"):
            value = np.int64(7)
        else:
            value = 0.2 * value
        tensor.copy_(torch.from_numpy(np.asarray(value)))
    return network


def torch_logits(torch, network, images):
    """Returns the logits of images (batch, H, W, 3)."""
    # More of them wait for each other busily, beside other tests for ten times as long.
    torch.set_num_threads(1)
    with torch.no_grad():
        return network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
