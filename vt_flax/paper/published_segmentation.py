"""The paper's printed counts of segmentation networks as data, and our models of them.

Source: arXiv 2006.03677, versions 1 and 4, tables of segmentation on COCO-Stuff and
LIP. The backbones there stride in a block's first 1 x 1 (`msra`).
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class SegmentationRow:
    """One printed row.

    Attributes:
      row: its label.
      model: name of our model.
      overrides: options of `create_model`.
      image_size: height and width in pixels that the counts are at.
      gmacs: billion multiply-adds of the whole network, with the digits printed.
      fpn_gmacs: of the pyramid: laterals and output convolutions, or what VT-FPN has
        instead; with the digits printed.
      miou: printed mean IoU in percent.
      note: what the print leaves open, or how it is to be read.
    """

    row: str
    model: str
    overrides: dict[str, Any]
    image_size: tuple[int, int]
    gmacs: str
    fpn_gmacs: str
    miou: float
    note: str = ""


def _rows(
    dataset: str, image_size: tuple[int, int], num_classes: int, printed: dict, **notes
) -> list[SegmentationRow]:
    """Rows of one dataset; `printed` gives (GMACs, FPN GMACs, mIoU) by model."""
    labels = {"fpn": "FPN", "vt_fpn": "VT-FPN"}
    return [
        SegmentationRow(
            f"{dataset} R-{depth} {labels[kind]}",
            f"{kind}_resnet{depth}",
            {"variant": "msra", "num_classes": num_classes},
            image_size,
            *figures,
            note=notes.get(kind, ""),
        )
        for (kind, depth), figures in printed.items()
    ]


PUBLISHED_SEGMENTATION: list[SegmentationRow] = [
    *_rows(
        "COCO-Stuff",
        (800, 1216),
        54,
        {
            ("fpn", 50): ("159", "55.1", 40.78),
            ("vt_fpn", 50): ("113", "8.5", 41.00),
            ("fpn", 101): ("231", "55.1", 41.51),
            ("vt_fpn", 101): ("185", "8.5", 41.50),
        },
    ),
    *_rows(
        "LIP",
        (473, 473),
        20,
        {
            ("fpn", 50): ("37.1", "12.8", 47.04),
            ("vt_fpn", 50): ("26.4", "2.0", 47.39),
            ("fpn", 101): ("54.4", "12.8", 47.35),
            ("vt_fpn", 101): ("43.6", "2.0", 47.58),
        },
        vt_fpn="FPN: 2.0 may stand for 1.95 to 2.05",
    ),
]
