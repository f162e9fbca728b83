"""The paper's printed counts as data, with the model that reproduces each row.

Source: arXiv 2006.03677, versions 1 and 4, tables of classification on ImageNet.
MACs are at 224 x 224 and for 1000 classes.
"""

import dataclasses
from typing import Any

V4 = {"preset": "v4"}
HALF_SPLIT = {"preset": "v4", "tokenizer": "dynamic"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One printed row.

    Attributes:
      table: which printed table.
      row: its label.
      model: name of our model.
      overrides: options of `create_model`.
      mmacs: printed million multiply-adds.
      mparams: printed million parameters; `None` where the table prints none.
      counted_mmacs: the figure that the described architecture must give, where the
        print is rounded or in error; `None` to compare with the print.
      determined: whether the paper says enough to fix the architecture.
      top1: printed ImageNet top-1 in percent.
      note: why a row is not determined, or what is wrong with the print.
      ablation: the row of configs/ablations.py that trains it; empty where none does.
    """

    table: str
    row: str
    model: str
    overrides: dict[str, Any]
    mmacs: float
    mparams: float | None
    counted_mmacs: float | None = None
    determined: bool = True
    top1: float | None = None
    note: str = ""
    ablation: str = ""

    @property
    def reference_mmacs(self) -> float:
        """The figure to compare with."""
        return self.mmacs if self.counted_mmacs is None else self.counted_mmacs


def _ablation(
    name: str, row: str, overrides: dict, eighteen: tuple, thirty_four: tuple, **more
) -> list[Row]:
    """Rows of one ablation for VT-R18 and VT-R34, each (top-1, MMACs, M params)."""
    return [
        Row(
            "ablation",
            f"VT-R{depth} {row}",
            f"vt_resnet{depth}",
            {**V4, **overrides},
            top1=top1,
            mmacs=mmacs,
            mparams=mparams,
            ablation=name,
            **more.get(f"r{depth}", {}),
        )
        for depth, (top1, mmacs, mparams) in ((18, eighteen), (34, thirty_four))
    ]


def _resnet(
    table: str, prefix: str, depth: int, top1: float, ablation: str = ""
) -> Row:
    """The row of a plain ResNet; the print of its MACs is rounded."""
    mmacs, mparams, counted = {
        18: (1814, 11.7, 1814.1),
        34: (3664, 21.8, 3663.8),
        50: (4089, 25.5, 4089.2),
        101: (7802, 44.4, 7801.4),
    }[depth]
    label, model = f"{prefix}ResNet-{depth}", f"resnet{depth}"
    return Row(
        table, label, model, {}, mmacs, mparams, counted, top1=top1, ablation=ablation
    )


def _unidentified(depth: int, mmacs: float, mparams: float, top1: float) -> list[Row]:
    """Rows of table 8 whose architecture is not identified, by preset."""
    return [
        Row(
            "table 8",
            f"VT-R{depth} as {preset}",
            f"vt_resnet{depth}",
            {"preset": preset},
            mmacs,
            mparams,
            determined=False,
            top1=top1,
            note="the printed architecture is not identified",
        )
        for preset in ("v4", "v1")
    ]


_LLOYD = "Lloyd iterations are not stated: 5, similarities counted, fit"
_MISPRINT = "as VT-R18; 3230 is below every variant: a misprint of 3300?"
_SPLIT = "v4's modules with half-replaced tokens"
# fmt: off
PUBLISHED: list[Row] = [
    _resnet("resnet", "", 18, 69.8),
    _resnet("resnet", "", 34, 73.3),
    _resnet("resnet", "", 50, 76.0),
    _resnet("resnet", "", 101, 77.4),
    *_ablation(
        "pooling", "tokenizer: pooling",
        {"first_tokenizer": "pooling", "tokenizer": "pooling"},
        (70.6, 1550, 11.0), (73.5, 3246, 20.6),
    ),
    *_ablation(
        "clustering", "tokenizer: clustering", {"first_tokenizer": "clustering"},
        (71.5, 1580, 11.6), (75.1, 3230, 21.8),
        r18={"determined": False, "note": _LLOYD},
        r34={"determined": False, "note": _MISPRINT},
    ),
    *_ablation(
        "recurrent", "tokenizer: filter + recurrent (the model)", {},
        (72.0, 1579, 11.6), (74.8, 3299, 21.8),
    ),
    *_ablation(
        "static", "tokenizer: without recurrent", {"tokenizer": "static"},
        (71.4, 1564, 11.1), (74.5, 3369, 20.7),
        r34={"counted_mmacs": 3269, "note": "3369 is a misprint of 3269"},
    ),
    *_ablation(
        "no_interaction", "interaction: none", {"interaction": "none"},
        (68.8, 1528, 8.5), (73.4, 3222, 17.1),
    ),
    *_ablation(
        "graph", "interaction: graph convolution", {"interaction": "graph"},
        (69.2, 1528, 8.5), (73.6, 3223, 17.1),
    ),
    *_ablation(
        "transformer", "interaction: transformer (the model)", {},
        (72.0, 1579, 11.6), (74.8, 3299, 21.8),
    ),
    *_ablation(
        "tokens16", "tokens: 16", {"tokens": 16}, (72.0, 1579, None), (74.8, 3299, None)
    ),
    *_ablation(
        "tokens32", "tokens: 32", {"tokens": 32}, (71.7, 1711, None), (75.1, 3514, None)
    ),
    *_ablation(
        "tokens64", "tokens: 64", {"tokens": 64}, (72.0, 1979, None), (75.0, 3951, None)
    ),
    *_ablation(
        "no_projector", "without projector", {"projector": False},
        (70.9, 1497, 9.3), (74.1, 3158, 17.3),
    ),
    *_ablation(
        "", "with projector (the model)", {}, (72.0, 1579, 11.6), (74.8, 3299, 21.8)
    ),
    _resnet("ablation", "plain ", 18, 69.9, "resnet"),
    _resnet("ablation", "plain ", 34, 73.3, "resnet"),
    Row(
        "table 8", "VT-R18", "vt_resnet18", HALF_SPLIT,
        1569, 11.7, 1569.0, top1=76.8, note=_SPLIT,
    ),
    Row(
        "table 8", "VT-R34", "vt_resnet34", {**HALF_SPLIT, "transformers": 2},
        3236, 19.2, 3236.7, top1=79.9,
        note=f"{_SPLIT} and 2 of the 3 transformers",
    ),
    *_unidentified(50, 3412, 21.4, 80.6),
    *_unidentified(101, 7129, 41.5, 82.3),
]
# fmt: on
