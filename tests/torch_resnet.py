"""A residual network in plain PyTorch, with the names that torchvision and timm give.

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
    nn = torch.nn
    sizes, bottleneck = sizes or SIZES[depth], depth >= 50

    def convolution(inside, outside, kernel, stride=1):
        return nn.Conv2d(
            inside, outside, kernel, stride, padding=kernel // 2, bias=False
        )

    class Gate(nn.Module):
        def __init__(self, channels):
            super().__init__()
            inside = max(multiple, channels // gate // multiple * multiple)
            self.fc1 = nn.Conv2d(channels, inside, 1)
            self.fc2 = nn.Conv2d(inside, channels, 1)

        def forward(self, x):
            y = torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))
            return x * torch.sigmoid(self.fc2(y))

    class Block(nn.Module):
        def __init__(self, inside, width, stride):
            super().__init__()
            outside = 4 * width if bottleneck else width
            first, second = (stride, 1) if variant == "msra" else (1, stride)
            if bottleneck:
                self.conv1 = convolution(inside, width, 1, first)
                self.conv2 = convolution(width, width, 3, second)
                self.conv3 = convolution(width, outside, 1)
                self.bn3 = nn.BatchNorm2d(outside)
            else:
                self.conv1 = convolution(inside, width, 3, stride)
                self.conv2 = convolution(width, width, 3)
            self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
            self.se = Gate(outside) if gate else nn.Identity()
            self.downsample = nn.Sequential()
            if stride != 1 or inside != outside:
                self.downsample.append(convolution(inside, outside, 1, stride))
                self.downsample.append(nn.BatchNorm2d(outside))

        def forward(self, x):
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            if bottleneck:
                y = self.bn3(self.conv3(torch.relu(y)))
            return torch.relu(self.se(y) + self.downsample(x))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = convolution(3, width, 7, 2), nn.BatchNorm2d(width)
            inside = width
            for i, size in enumerate(sizes):
                layer = nn.Sequential()
                for j in range(size):
                    layer.append(Block(inside, width * 2**i, 2 if i and not j else 1))
                    inside = width * 2**i * (4 if bottleneck else 1)
                self.add_module(f"layer{i + 1}", layer)
            self.fc = nn.Linear(inside, classes)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            x = nn.functional.max_pool2d(x, 3, 2, padding=1)
            for i in range(4):
                x = getattr(self, f"layer{i + 1}")(x)
            return self.fc(x.mean((2, 3)))

    # Whose numbers `randomise` makes: PyTorch's own would be drawn in vain.
    with torch.device("meta"):
        network = Network()
    return network.to_empty(device="cpu").eval()


def randomise(torch, network, seed=0):
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
