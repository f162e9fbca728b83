"""Plain ResNets that configured networks are measured against."""

import dataclasses
import re

from ml_collections import ConfigDict

from vt_flax.errors import UserError
from vt_flax.models import create_model
from vt_flax.paper.macs import count
from vt_flax.plan.step import CLASSES


@dataclasses.dataclass(frozen=True)
class Plain:
    """A plain ResNet; the fields are those of `models.resnet.Backbone`.

    Attributes:
      depth: the number in its name.
    """

    depth: int
    stage_sizes: tuple[int, ...]
    bottleneck: bool
    width: int
    stem: str
    num_classes: int

    @property
    def name(self) -> str:
        """Its usual name."""
        return f"ResNet-{self.depth}"

    def macs(self, image_size: tuple[int, int]) -> int:
        """Returns its multiply-adds for an image."""
        options = dataclasses.asdict(self)
        del options["depth"], options["bottleneck"]
        model = create_model(f"resnet{self.depth}", **options)
        return count(model, image_size).total_macs


def plain_resnet(config: ConfigDict) -> Plain:
    """Returns the plain ResNet that a network is, or replaces.

    Its last stage is what a VT-ResNet has modules for.

    Args:
      config: a resolved configuration.

    Raises:
      UserError: for a network that has none.
    """
    model = config.model
    found = re.fullmatch(r"(?:vt_)?resnet(\d+)", model.name)
    if not found:
        raise UserError(f"there is no plain ResNet to compare {model.name} with")
    depth = int(found[1])
    if depth >= 50 and model.variant != "torchvision":
        raise UserError(
            f"references stride in the 3 x 3 of a bottleneck, not as variant "
            f"{model.variant} does"
        )
    return Plain(
        depth,
        tuple(model.stage_sizes),
        depth >= 50,
        model.width,
        model.stem,
        model.num_classes or CLASSES["classification"],
    )
