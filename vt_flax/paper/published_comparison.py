"""The systems that the paper compares with as data, and our models of them.

Source: arXiv 2006.03677, version 4, table 8. Networks that are not in it are of the
systems' own papers. All figures are at 224 x 224, for ImageNet's 1000 classes, with the
digits printed.
"""

import dataclasses
from typing import Any

from vt_flax.paper.published import HALF_SPLIT, V4


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a paper prints of a network; None for what it does not.

    Attributes:
      top1: ImageNet top-1 in percent.
      gmacs: billion multiply-adds.
      mparams: million parameters.
    """

    top1: str | None = None
    gmacs: str | None = None
    mparams: str | None = None


@dataclasses.dataclass(frozen=True)
class ComparisonRow:
    """One network of the comparison.

    Attributes:
      system: whose it is.
      row: its label.
      size: what tells it from others of its system, on a chart.
      model: name of our model.
      overrides: options of `create_model`.
      printed: by the paper; empty for a network that is not in its table.
      own: by the system's own paper, where that says something else or more.
      checked_mparams: million parameters that the architecture as it is described must
        have; None where only the print tells.
      determined: whether the architecture is known.
      explained: why our multiply-adds are others than the print's; empty where they
        are alike.
      note: what else there is to know.
    """

    system: str
    row: str
    size: str
    model: str
    overrides: dict[str, Any]
    printed: Figures
    own: Figures
    checked_mparams: str | None = None
    determined: bool = True
    explained: str = ""
    note: str = ""

    @property
    def figures(self) -> Figures:
        """The paper's figures, or its own paper's of what the paper leaves out."""
        return self.printed if self.printed.top1 else self.own


def _row(
    system: str,
    size: str,
    model: str,
    printed: str,
    checked: str | None = None,
    own: str = "",
    **more: Any,
) -> ComparisonRow:
    """A row; figures are words, top-1, GMACs and M parameters, or - for none."""
    figures = [
        Figures(*(None if word == "-" else word for word in words.split()))
        for words in (printed, own)
    ]
    label = more.pop("label", f"{system}-{size}")
    overrides = more.pop("overrides", {})
    return ComparisonRow(
        system, label, size, model, overrides, *figures, checked, **more
    )


# The print is of networks that stride in a block's first 1 x 1.
_MSRA = {"overrides": {"variant": "msra"}, "note": "variant=msra, as the print"}
# Why ours are fewer than the prints: see the models' docstrings.
_WHOLE_STEM = {
    "explained": "0.29 G more with the stem's layer at every pixel, strided after that"
}
_MIXED_FIRST = {
    "explained": "the stem mixes its value maps first, and so has but one to count"
}
_OPEN = {
    "overrides": V4,
    "determined": False,
    "note": "v4's modules; what was printed is not identified (table 8)",
}


def _san(
    size: str, kind: str, printed: str, checked: str, more: str, own: str = ""
) -> ComparisonRow:
    """A row of SAN, whose two kinds are lines of their own; `more` as they count."""
    return _row(
        f"SAN {kind}",
        size,
        f"san{size}_{kind}",
        printed,
        checked,
        own,
        label=f"SAN{size} {kind}",
        explained=f"{more} G as its authors count, normalization and ReLU among them",
    )


_THIRD = {**HALF_SPLIT, "transformers": 2}
_AA50 = "1.4 % from its own paper's 4.15 G, which is not rounded to 4.1"
_GLORE = "5.162 G without the products from pixels to nodes and back"
# fmt: off
PUBLISHED_COMPARISON: list[ComparisonRow] = [
    _row("ResNet", "18", "resnet18", "69.8 1.814 11.7"),
    _row("SE-ResNet", "18", "se_resnet18", "70.6 1.814 11.8", "11.78"),
    _row("CBAM-ResNet", "18", "cbam_resnet18", "70.7 1.815 11.8", "11.78"),
    _row("LR-Net", "18", "lr_net18", "74.6 2.5 14.4", **_WHOLE_STEM),
    _row("VT-ResNet", "18", "vt_resnet18", "76.8 1.569 11.7", overrides=HALF_SPLIT),
    _row("LR-Net", "26", "lr_net26", "", "14.6", "75.7 2.6 14.7", **_WHOLE_STEM),
    _row(
        "Stand-Alone", "26", "sasa_resnet26", "", "10.34", "- 2.35 10.3",
        **_MIXED_FIRST,
    ),
    _san("10", "pairwise", "", "10.53", "2.155", "74.9 2.2 10.5"),
    _san("10", "patchwise", "", "11.84", "1.865", "77.1 1.9 11.8"),
    _row("ResNet", "34", "resnet34", "73.3 3.664 21.8"),
    _row("SE-ResNet", "34", "se_resnet34", "73.9 3.664 22.0", "21.96"),
    _row(
        "CBAM-ResNet", "34", "cbam_resnet34", "74.0 3.664 22.0", "21.96",
        "74.0 3.665 22.0",
    ),
    _row("AA-ResNet", "34", "aa_resnet34", "74.7 3.55 20.7", "20.75"),
    _row("VT-ResNet", "34", "vt_resnet34", "79.9 3.236 19.2", overrides=_THIRD),
    _row(
        "Stand-Alone", "38", "sasa_resnet38", "", "14.19", "- 3.0 14.1",
        **_MIXED_FIRST,
    ),
    _san("15", "pairwise", "", "14.07", "3.023", "76.6 3.0 14.1"),
    _san("15", "patchwise", "", "16.18", "2.583", "78.0 2.6 16.2"),
    _row("ResNet", "50", "resnet50", "76.0 4.089 25.5"),
    _row(
        "SE-ResNet", "50", "se_resnet50", "76.9 3.860 28.1", "28.09", "76.7 3.87 -",
        **_MSRA,
    ),
    _row("CBAM-ResNet", "50", "cbam_resnet50", "77.3 3.864 28.1", "28.09", **_MSRA),
    _row("LR-Net", "50", "lr_net50", "77.3 4.3 23.3", "23.4", **_WHOLE_STEM),
    _row(
        "Stand-Alone", "50", "sasa_resnet50", "77.6 3.6 18.0", "18.04",
        **_MIXED_FIRST,
    ),
    _row(
        "AA-ResNet", "50", "aa_resnet50", "77.7 4.1 25.6", "25.81", "77.7 4.15 25.8",
        explained=_AA50,
    ),
    _san("19", "pairwise", "", "17.60", "3.844", "76.9 3.8 17.6"),
    _san("19", "patchwise", "78.2 3.3 20.5", "20.52", "3.259"),
    _row("GloRe-ResNet", "50", "glore_resnet50", "78.4 5.2 30.5", explained=_GLORE),
    _row("VT-ResNet", "50", "vt_resnet50", "80.6 3.412 21.4", **_OPEN),
    _row("ResNet", "101", "resnet101", "77.4 7.802 44.4"),
    _row(
        "SE-ResNet", "101", "se_resnet101", "77.7 7.575 49.3", "49.33",
        "77.6 7.60 -", **_MSRA,
    ),
    _row("CBAM-ResNet", "101", "cbam_resnet101", "78.5 7.581 49.3", "49.33", **_MSRA),
    _row("LR-Net", "101", "lr_net101", "78.5 7.79 42.0", "40.8", **_WHOLE_STEM),
    _row("AA-ResNet", "101", "aa_resnet101", "78.7 8.05 45.4", "45.39"),
    _row("VT-ResNet", "101", "vt_resnet101", "82.3 7.129 41.5", **_OPEN),
]
# fmt: on
