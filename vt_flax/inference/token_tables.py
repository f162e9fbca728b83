"""A report on tokens as people read it on a terminal."""

from typing import Any

from vt_flax.inference.token_records import Report

Row = dict[str, Any]


def token_rows(report: Report) -> list[Row]:
    """Returns a row for each token of each module; shares in percent."""
    rows = []
    for module in report["modules"]:
        for token in module["tokens"]:
            entropy, share = token["entropy"], token["entropy_share"]
            row = {
                "module": module["module"],
                "token": str(token["token"]),
                "entropy, nats": _rounded(entropy["mean"], 1, 3),
                "± nats": _rounded(entropy["spread"], 1, 3),
                "of the most, %": _rounded(share["mean"]),
                "± %": _rounded(share["spread"]),
            }
            if any(module["heads"] > 1 for module in report["modules"]):
                row["by head, %"] = _range(token.get("heads", []))
            if report["classes"]:
                likes = token["likes"]
                row |= {
                    "foreground, %": _rounded(token["foreground"]["mean"]),
                    "± foreground": _rounded(token["foreground"]["spread"]),
                    "likes": likes["class"],
                    "times its area": round(likes["times_its_area"], 2),
                }
            rows.append(row)
    return rows


def module_rows(report: Report) -> list[Row]:
    """Returns a row for each module; shares in percent."""
    rows = []
    for module in report["modules"]:
        overlap = module["overlap"] or {}
        row = {
            "module": module["module"],
            "map": f"{module['height']} x {module['width']}",
            "heads": module["heads"],
            "entropy, %": _rounded(module["entropy_share"]),
            "two tokens overlap, %": _rounded(overlap.get("mean")),
            "± %": _rounded(overlap.get("spread")),
        }
        if report["classes"]:
            row |= {
                "beside, %": _rounded(module["outside"]),
                "foreground, %": _rounded(module["foreground"]),
                "tells of the class, nats": _rounded(module["information"], 1, 4),
                "of the most, %": _rounded(module["information_share"]),
            }
        rows.append(row)
    return rows


def move_rows(report: Report) -> list[Row]:
    """Returns a row for each module that extracts tokens anew; in percent."""
    return [
        {
            "module": move["module"],
            "a new token overlaps: itself before, %": _rounded(move["overlap"]),
            "its best match, %": _rounded(move["matched_overlap"]),
            "any, %": _rounded(move["any_overlap"]),
            "matched to itself, %": _rounded(move["kept"]),
            "moved, % of the side": _rounded(move["distance"]),
        }
        for move in report["moves"]
    ]


def title(report: Report) -> str:
    """Returns what the report is of, in a line."""
    skipped = f", {report['skipped']:,} skipped" if report["skipped"] else ""
    return (
        f"Tokens of {report['network']} on {report['dataset']}, step "
        f"{report['step']:,}, {report['weights']} weights: {report['examples']:,} "
        f"examples{skipped}"
    )


def notes(report: Report) -> list[str]:
    """Returns what is to be said below the tables."""
    if not report["classes"]:
        return report["notes"]
    area = report["classes"]["foreground_area"]["mean"]
    return [f"foreground is {100 * area:.1f} % of the pixels", *report["notes"]]


def _rounded(value: float | None, scale: float = 100, digits: int = 1) -> float | None:
    return None if value is None else round(scale * value, digits)


def _range(heads: list[Report]) -> str:
    means = [head["entropy_share"]["mean"] for head in heads]
    if not means or None in means:
        return "-"
    return f"{100 * min(means):.1f} to {100 * max(means):.1f}"
