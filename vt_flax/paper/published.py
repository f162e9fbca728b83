"""The published figures as data, with the model that reproduces each row.

Source: arXiv 2006.03677, versions 1 and 4; and the papers of the systems that version 4
compares with in table 8. Figures of classification are at 224 x 224, for ImageNet's
1000 classes. Figures are strings with the digits printed, since their rounding counts.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

V4 = {"preset": "v4"}
HALF_SPLIT = {"preset": "v4", "tokenizer": "dynamic"}


class Figures(NamedTuple):
    """Figures of a network; None for what is not printed.

    Attributes:
      accuracy: ImageNet top-1, or mean IoU in segmentation, in percent.
      gmacs: billion multiply-adds of one image.
      mparams: million parameters.
    """

    accuracy: str | None = None
    gmacs: str | None = None
    mparams: str | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One network of a table.

    Attributes:
      table: `resnet`, `ablation`, `table 8`, `segmentation` or `comparison`.
      row: its label.
      model: name of our model.
      overrides: options of `create_model`.
      printed: figures of the Visual Transformers paper.
      own: figures of the system's own paper, where that prints others or more.
      gmacs: billion multiply-adds that the described architecture must have, where the
        print is rounded or in error.
      mparams: million parameters that it must have, likewise.
      fpn_gmacs: printed billion multiply-adds of the pyramid: laterals and output
        convolutions, or what VT-FPN has instead.
      image_size: height and width in pixels that the counts are at.
      determined: whether the paper says enough to fix the architecture.
      explained: why our multiply-adds differ from the print; empty where they do not.
      note: why a row is not determined, or what else there is to know.
      ablation: row of configs/ablations.py that trains it; empty where none does.
      system: name of a line of the chart; empty for rows that are not on it.
      size: label of the network among others of its system, on the chart.
    """

    table: str
    row: str
    model: str
    overrides: dict[str, Any]
    printed: Figures
    own: Figures = Figures()
    gmacs: str | None = None
    mparams: str | None = None
    fpn_gmacs: str | None = None
    image_size: tuple[int, int] = (224, 224)
    determined: bool = True
    explained: str = ""
    note: str = ""
    ablation: str = ""
    system: str = ""
    size: str = ""

    @property
    def figures(self) -> Figures:
        """The paper's figures, or those of its own paper where the paper has none."""
        return self.printed if self.printed.accuracy else self.own


def _figures(words: str) -> Figures:
    """Parses accuracy, GMACs and M parameters; `-` stands for a figure not printed."""
    return Figures(*(None if word == "-" else word for word in words.split()))


def _ablation(
    name: str,
    row: str,
    overrides: dict,
    first: str,
    second: str,
    **more: dict[str, Any],
) -> list[Row]:
    """Rows of one ablation, for VT-R18 and VT-R34; `r18` and `r34` are more fields."""
    return [
        Row(
            "ablation",
            f"VT-R{depth} {row}",
            f"vt_resnet{depth}",
            {**V4, **overrides},
            _figures(words),
            ablation=name,
            **more.get(f"r{depth}", {}),
        )
        for depth, words in ((18, first), (34, second))
    ]


def _resnets(
    table: str, prefix: str, top1: dict[int, str], ablation: str = ""
) -> Iterator[Row]:
    """Rows of plain ResNets; the print of their multiply-adds is rounded."""
    counts = {
        18: ("1.814 11.7", "1.8141"),
        34: ("3.664 21.8", "3.6638"),
        50: ("4.089 25.5", "4.0892"),
        101: ("7.802 44.4", "7.8014"),
    }
    for depth, accuracy in top1.items():
        printed, counted = counts[depth]
        yield Row(
            table,
            f"{prefix}ResNet-{depth}",
            f"resnet{depth}",
            {},
            _figures(f"{accuracy} {printed}"),
            gmacs=counted,
            ablation=ablation,
        )


def _table8(row: str, overrides: dict, printed: str, **more: Any) -> Row:
    model = f"vt_resnet{row.split()[0].removeprefix('VT-R')}"
    return Row("table 8", row, model, overrides, _figures(printed), **more)


def _segmentation(
    dataset: str,
    image_size: tuple[int, int],
    num_classes: int,
    printed: dict[str, str],
    note: str = "",
) -> list[Row]:
    """Rows of a dataset; `printed` has mIoU, GMACs and GMACs of the pyramid by name."""
    rows = []
    for name, words in printed.items():
        depth, kind = name.split()
        miou, gmacs, fpn_gmacs = words.split()
        model = {"FPN": "fpn", "VT-FPN": "vt_fpn"}[kind]
        rows.append(
            Row(
                "segmentation",
                f"{dataset} R-{depth} {kind}",
                f"{model}_resnet{depth}",
                # The backbones there stride in a block's first 1 x 1.
                {"variant": "msra", "num_classes": num_classes},
                Figures(miou, gmacs),
                fpn_gmacs=fpn_gmacs,
                image_size=image_size,
                note=note if kind == "VT-FPN" else "",
            )
        )
    return rows


def _system(
    system: str,
    size: str,
    model: str,
    printed: str,
    mparams: str | None = None,
    own: str = "",
    **more: Any,
) -> Row:
    """A row of the comparison."""
    more = {"row": f"{system}-{size}", "overrides": {}, **more}
    return Row(
        "comparison",
        model=model,
        printed=_figures(printed),
        own=_figures(own),
        mparams=mparams,
        system=system,
        size=size,
        **more,
    )


def _san(
    size: str, kind: str, printed: str, mparams: str, authors: str, own: str = ""
) -> Row:
    """A row of SAN, whose two kinds are separate lines of the chart."""
    why = f"{authors} G as its authors count, normalization and ReLU among them"
    more = {"row": f"SAN{size} {kind}", "explained": why}
    model = f"san{size}_{kind}"
    return _system(f"SAN {kind}", size, model, printed, mparams, own, **more)


_UNIDENTIFIED = {
    "determined": False,
    "note": "the printed architecture is not identified",
}
_LLOYD = {
    "determined": False,
    "note": "Lloyd iterations are not stated: 5, similarities counted, fit",
}
_MISPRINT = {
    "determined": False,
    "note": "as VT-R18; 3230 is below every variant: a misprint of 3300?",
}
_SPLIT = "v4's modules with half-replaced tokens"
# VT-ResNet-34's count in table 8.
_TWO_TRANSFORMERS = {**HALF_SPLIT, "transformers": 2}
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
_AA50 = "1.4 % from its own paper's 4.15 G, which is not rounded to 4.1"
_GLORE = "5.162 G without the products from pixels to nodes and back"

# fmt: off
PUBLISHED: list[Row] = [
    *_resnets("resnet", "", {18: "69.8", 34: "73.3", 50: "76.0", 101: "77.4"}),
    *_ablation(
        "pooling", "tokenizer: pooling",
        {"first_tokenizer": "pooling", "tokenizer": "pooling"},
        "70.6 1.550 11.0", "73.5 3.246 20.6",
    ),
    *_ablation(
        "clustering", "tokenizer: clustering", {"first_tokenizer": "clustering"},
        "71.5 1.580 11.6", "75.1 3.230 21.8", r18=_LLOYD, r34=_MISPRINT,
    ),
    *_ablation(
        "recurrent", "tokenizer: filter + recurrent (the model)", {},
        "72.0 1.579 11.6", "74.8 3.299 21.8",
    ),
    *_ablation(
        "static", "tokenizer: without recurrent", {"tokenizer": "static"},
        "71.4 1.564 11.1", "74.5 3.369 20.7",
        r34={"gmacs": "3.269", "note": "3369 is a misprint of 3269"},
    ),
    *_ablation(
        "no_interaction", "interaction: none", {"interaction": "none"},
        "68.8 1.528 8.5", "73.4 3.222 17.1",
    ),
    *_ablation(
        "graph", "interaction: graph convolution", {"interaction": "graph"},
        "69.2 1.528 8.5", "73.6 3.223 17.1",
    ),
    *_ablation(
        "transformer", "interaction: transformer (the model)", {},
        "72.0 1.579 11.6", "74.8 3.299 21.8",
    ),
    *_ablation(
        "tokens16", "tokens: 16", {"tokens": 16}, "72.0 1.579 -", "74.8 3.299 -",
    ),
    *_ablation(
        "tokens32", "tokens: 32", {"tokens": 32}, "71.7 1.711 -", "75.1 3.514 -",
    ),
    *_ablation(
        "tokens64", "tokens: 64", {"tokens": 64}, "72.0 1.979 -", "75.0 3.951 -",
    ),
    *_ablation(
        "no_projector", "without projector", {"projector": False},
        "70.9 1.497 9.3", "74.1 3.158 17.3",
    ),
    *_ablation(
        "", "with projector (the model)", {}, "72.0 1.579 11.6", "74.8 3.299 21.8",
    ),
    *_resnets("ablation", "plain ", {18: "69.9", 34: "73.3"}, "resnet"),
    _table8("VT-R18", HALF_SPLIT, "76.8 1.569 11.7", gmacs="1.5690", note=_SPLIT),
    _table8(
        "VT-R34", _TWO_TRANSFORMERS, "79.9 3.236 19.2", gmacs="3.2367",
        note=f"{_SPLIT} and 2 of the 3 transformers",
    ),
    _table8("VT-R50 as v4", V4, "80.6 3.412 21.4", **_UNIDENTIFIED),
    _table8("VT-R50 as v1", {"preset": "v1"}, "80.6 3.412 21.4", **_UNIDENTIFIED),
    _table8("VT-R101 as v4", V4, "82.3 7.129 41.5", **_UNIDENTIFIED),
    _table8("VT-R101 as v1", {"preset": "v1"}, "82.3 7.129 41.5", **_UNIDENTIFIED),
]

PUBLISHED_SEGMENTATION: list[Row] = [
    *_segmentation(
        "COCO-Stuff", (800, 1216), 54,
        {
            "50 FPN": "40.78 159 55.1",
            "50 VT-FPN": "41.00 113 8.5",
            "101 FPN": "41.51 231 55.1",
            "101 VT-FPN": "41.50 185 8.5",
        },
    ),
    *_segmentation(
        "LIP", (473, 473), 20,
        {
            "50 FPN": "47.04 37.1 12.8",
            "50 VT-FPN": "47.39 26.4 2.0",
            "101 FPN": "47.35 54.4 12.8",
            "101 VT-FPN": "47.58 43.6 2.0",
        },
        "FPN: 2.0 may stand for 1.95 to 2.05",
    ),
]

PUBLISHED_COMPARISON: list[Row] = [
    _system("ResNet", "18", "resnet18", "69.8 1.814 11.7"),
    _system("SE-ResNet", "18", "se_resnet18", "70.6 1.814 11.8", "11.78"),
    _system("CBAM-ResNet", "18", "cbam_resnet18", "70.7 1.815 11.8", "11.78"),
    _system("LR-Net", "18", "lr_net18", "74.6 2.5 14.4", **_WHOLE_STEM),
    _system("VT-ResNet", "18", "vt_resnet18", "76.8 1.569 11.7", overrides=HALF_SPLIT),
    _system("LR-Net", "26", "lr_net26", "", "14.6", "75.7 2.6 14.7", **_WHOLE_STEM),
    _system(
        "Stand-Alone", "26", "sasa_resnet26", "", "10.34", "- 2.35 10.3",
        **_MIXED_FIRST,
    ),
    _san("10", "pairwise", "", "10.53", "2.155", "74.9 2.2 10.5"),
    _san("10", "patchwise", "", "11.84", "1.865", "77.1 1.9 11.8"),
    _system("ResNet", "34", "resnet34", "73.3 3.664 21.8"),
    _system("SE-ResNet", "34", "se_resnet34", "73.9 3.664 22.0", "21.96"),
    _system(
        "CBAM-ResNet", "34", "cbam_resnet34", "74.0 3.664 22.0", "21.96",
        "74.0 3.665 22.0",
    ),
    _system("AA-ResNet", "34", "aa_resnet34", "74.7 3.55 20.7", "20.75"),
    _system(
        "VT-ResNet", "34", "vt_resnet34", "79.9 3.236 19.2",
        overrides=_TWO_TRANSFORMERS,
    ),
    _system(
        "Stand-Alone", "38", "sasa_resnet38", "", "14.19", "- 3.0 14.1",
        **_MIXED_FIRST,
    ),
    _san("15", "pairwise", "", "14.07", "3.023", "76.6 3.0 14.1"),
    _san("15", "patchwise", "", "16.18", "2.583", "78.0 2.6 16.2"),
    _system("ResNet", "50", "resnet50", "76.0 4.089 25.5"),
    _system(
        "SE-ResNet", "50", "se_resnet50", "76.9 3.860 28.1", "28.09", "76.7 3.87 -",
        **_MSRA,
    ),
    _system("CBAM-ResNet", "50", "cbam_resnet50", "77.3 3.864 28.1", "28.09", **_MSRA),
    _system("LR-Net", "50", "lr_net50", "77.3 4.3 23.3", "23.4", **_WHOLE_STEM),
    _system(
        "Stand-Alone", "50", "sasa_resnet50", "77.6 3.6 18.0", "18.04",
        **_MIXED_FIRST,
    ),
    _system(
        "AA-ResNet", "50", "aa_resnet50", "77.7 4.1 25.6", "25.81", "77.7 4.15 25.8",
        explained=_AA50,
    ),
    _san("19", "pairwise", "", "17.60", "3.844", "76.9 3.8 17.6"),
    _san("19", "patchwise", "78.2 3.3 20.5", "20.52", "3.259"),
    _system("GloRe-ResNet", "50", "glore_resnet50", "78.4 5.2 30.5", explained=_GLORE),
    _system("VT-ResNet", "50", "vt_resnet50", "80.6 3.412 21.4", **_OPEN),
    _system("ResNet", "101", "resnet101", "77.4 7.802 44.4"),
    _system(
        "SE-ResNet", "101", "se_resnet101", "77.7 7.575 49.3", "49.33", "77.6 7.60 -",
        **_MSRA,
    ),
    _system(
        "CBAM-ResNet", "101", "cbam_resnet101", "78.5 7.581 49.3", "49.33", **_MSRA
    ),
    _system("LR-Net", "101", "lr_net101", "78.5 7.79 42.0", "40.8", **_WHOLE_STEM),
    _system("AA-ResNet", "101", "aa_resnet101", "78.7 8.05 45.4", "45.39"),
    _system("VT-ResNet", "101", "vt_resnet101", "82.3 7.129 41.5", **_OPEN),
]
# fmt: on
