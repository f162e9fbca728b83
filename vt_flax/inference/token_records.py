"""What is told of modules and their tokens, of the moments over a split.

The figures of a step are in `inference.token_figures` and `inference.token_classes`.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import rel_entr

from vt_flax.inference.token_classes import foreground_of
from vt_flax.inference.token_figures import earlier_places
from vt_flax.training.moments import Moments

Report = dict[str, Any]
# Of each module, in order: heads, tokens, height and width of its maps.
Shapes = Mapping[str, tuple[int, ...]]


def information(shares: np.ndarray) -> tuple[float, float]:
    """Returns what the token tells of the class: the mutual information of both.

    An example is drawn, a token, a pixel by its coefficients in that example, among
    those with a label. I(token; class) = sum p(t, c) log(p(t, c) / (p(t) p(c))), from 0
    where all tokens look at the same classes alike.

    Args:
      shares: (tokens, classes), means over the examples, without those unlabeled.

    Returns:
      It in nats, and as a share of the entropy of the class, which is the most that it
      can be; 0 where there is but one class.
    """
    joint = shares / shares.sum()
    apart = joint.sum(1, keepdims=True) * joint.sum(0)
    found = rel_entr(joint, apart).sum()
    classes = joint.sum(0)
    most = -sum(p * math.log(p) for p in classes.tolist() if p)
    return float(found), float(found / most) if most else 0.0


def _figure(moments: Moments, place: Any = ()) -> dict[str, float | None]:
    known = bool(moments.count[place])
    return {
        "mean": float(moments.mean[place]) if known else None,
        "spread": float(moments.std[place]) if known else None,
    }


def _mean(moments: Moments) -> float | None:
    """Returns the mean of several quantities' means."""
    known = moments.count > 0
    return float(moments.mean[known].mean()) if known.any() else None


def class_record(totals: Mapping[str, Any], names: tuple[str, ...]) -> Report:
    """Returns what all pixels have of each class."""
    *area, unlabeled = totals["classes"].mean.tolist()
    return {
        "foreground": [names[i] for i in foreground_of(names)],
        "foreground_area": _figure(totals["foreground"]),
        "area": dict(zip(names, area, strict=True)),
        "unlabeled": unlabeled,
    }


def module_record(
    totals: Mapping[str, Any],
    name: str,
    shape: tuple[int, ...],
    tokens: int,
    names: tuple[str, ...] | None,
) -> Report:
    """Returns what is told of a module and its tokens.

    Args:
      totals: of a whole split.
      name: of the module.
      shape: of its maps; see `Shapes`.
      tokens: L of the network.
      names: of the classes; None without masks.
    """
    heads, count, height, width = shape
    mine = _of(totals, name)
    report = {
        "module": name,
        "heads": heads,
        "height": height,
        "width": width,
        "entropy": _mean(mine["entropy"]),
        "entropy_share": _mean(mine["entropy_share"]),
        "outside": _mean(mine["outside"]),
        "overlap": _figure(mine["overlap"]) if "overlap" in mine else None,
    }
    if names:
        report["foreground"] = _mean(mine["foreground"])
        labeled = mine["classes"].mean[:, :-1]
        nats, share = information(labeled) if labeled.any() else (None, None)
        report |= {"information": nats, "information_share": share}
    report["tokens"] = [
        # Half replacement puts its new tokens behind the kept ones.
        {"token": tokens - count + row, **_token(totals, mine, row, heads, names)}
        for row in range(count)
    ]
    return report


def _token(
    totals: Mapping[str, Any],
    mine: Mapping[str, Moments],
    row: int,
    heads: int,
    names: tuple[str, ...] | None,
) -> Report:
    report = {
        key: _figure(mine[key], row) for key in ("entropy", "entropy_share", "outside")
    }
    if names:
        *shares, unlabeled = mine["classes"].mean[row].tolist()
        area = totals["classes"].mean[:-1]
        times = np.where(area > 0, shares / np.maximum(area, 1e-12), 0.0)
        likes = int(times.argmax())
        report |= {
            "foreground": _figure(mine["foreground"], row),
            "classes": dict(zip(names, shares, strict=True)),
            "unlabeled": unlabeled,
            "likes": {"class": names[likes], "times_its_area": float(times[likes])},
        }
    if heads > 1:
        report["heads"] = [
            {
                key: _figure(mine[f"head_{key}"], (head, row))
                for key in ("entropy", "entropy_share")
            }
            for head in range(heads)
        ]
    return report


def move_records(
    totals: Mapping[str, Any], shapes: Shapes, tokens: int
) -> list[Report]:
    """Returns what is told of each module that extracts tokens anew.

    Args:
      totals: of a whole split.
      shapes: of all modules.
      tokens: L of the network.
    """
    counts = {name: shape[1] for name, shape in shapes.items()}

    def place(name: str, row: int) -> Report:
        return {"module": name, "token": tokens - counts[name] + row}

    moves = []
    for name, places in earlier_places(counts, tokens).items():
        mine = _of(totals, name)
        overlap, distance = mine["moved_overlap"], mine["moved_distance"]
        # The earlier token for each new one by which they overlap most in all, no
        # earlier one twice.
        earlier, new = linear_sum_assignment(overlap.mean, maximize=True)
        matched = dict(zip(new.tolist(), earlier.tolist(), strict=True))
        own = range(counts[name])
        moves.append(
            {
                "module": name,
                "overlap": _mean(Moments(*(x[own, own] for x in overlap))),
                "matched_overlap": _mean(Moments(*(x[earlier, new] for x in overlap))),
                "any_overlap": _mean(overlap),
                "distance": _mean(distance),
                "kept": sum(matched[row] == row for row in own) / len(own),
                "tokens": [
                    {
                        **place(name, row),
                        "was": place(*places[row]),
                        "overlap": _figure(overlap, (row, row)),
                        "distance": _figure(distance, row),
                        "matches": place(*places[matched[row]]),
                        "matched_overlap": _figure(overlap, (matched[row], row)),
                    }
                    for row in own
                ],
            }
        )
    return moves


def _of(totals: Mapping[str, Any], module: str) -> dict[str, Moments]:
    prefix = f"{module}/"
    return {
        key.removeprefix(prefix): value
        for key, value in totals.items()
        if key.startswith(prefix)
    }
