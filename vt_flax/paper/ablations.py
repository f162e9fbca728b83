"""The user's ablations beside the paper's."""

import pathlib
import re
from typing import Any

from vt_flax.errors import UserError
from vt_flax.paper.counts import Table
from vt_flax.paper.published import PUBLISHED, Row
from vt_flax.paper.runs import read_result, result_row
from vt_flax.training.workdir import CONFIG_FILE

# A row is trained in the folder ROW-DEPTH.
FOLDER = re.compile(r"(\w+)-(18|34)")


def ablation_rows(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns a record for each run of `launch/ablation.sh` that has begun.

    Args:
      folder: that holds the runs' workdirs, ROW-DEPTH each.

    Returns:
      Records in the order of the paper's tables, by depth. What the paper prints of the
      row is `printed_top1`, `printed_mmacs` and `printed_mparams`, None where it does
      not; the rest is as `result_row` has it.

    Raises:
      UserError: if there is no such run, or one that cannot be read.
    """
    found = [
        (FOLDER.fullmatch(p.parent.name), p) for p in folder.glob(f"*/{CONFIG_FILE}")
    ]
    known = {(row.ablation, _depth(row)): row for row in PUBLISHED if row.ablation}
    order = list(known)
    runs = []
    for match, file in found:
        if match:
            key = (match[1], int(match[2]))
            place = order.index(key) if key in known else len(order)
            runs.append((key[1], place, key[0], file.parent))
    if not runs:
        raise UserError(
            f"--ablation {folder}: no run is there; name the folder in which "
            "launch/ablation.sh keeps them, as ROW-DEPTH"
        )
    records = []
    for depth, _, name, workdir in sorted(runs):
        row = known.get((name, depth))
        records.append(
            {
                "row": name,
                "depth": depth,
                "printed_top1": row and row.top1,
                "printed_mmacs": row and row.mmacs,
                "printed_mparams": row and row.mparams,
                **result_row(read_result(workdir)),
            }
        )
    return records


def _depth(row: Row) -> int:
    return int(row.model.rpartition("resnet")[2])


def ablation_table(records: list[dict[str, Any]]) -> Table:
    """Returns the table of what `ablation_rows` returned."""
    shown = [
        {
            "row": f"{r['row']}, {r['depth']}",
            "paper's top-1 %": r["printed_top1"],
            "raw": r["raw_top1"],
            "average": r["ema_top1"],
            "at step": r["step"],
            "paper's M MACs": r["printed_mmacs"],
            "M MACs": r["mmacs"],
            "paper's M params": r["printed_mparams"],
            "M params": r["mparams"],
            "images/s": r["images_per_second"],
        }
        for r in records
    ]
    settings = sorted({f"{r['dataset']} at {r['size']}" for r in records})
    notes = [
        "The paper's are of ImageNet at 224x224 after 90 epochs; the others of "
        f"{', '.join(settings)}, by the newest evaluation of each run.",
    ]
    return Table(shown, "Ablations, the paper's and these", notes)
