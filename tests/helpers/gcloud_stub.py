#!/usr/bin/env python3
"""Stands for gcloud: records its calls, and acts a TPU's life as it is told.

$STUB is a folder. `calls` gets a line of JSON for each call. `plan` says what the TPU
does: `states` are what describe answers one after the other once it is asked for, and
`lives` what its machines answer, one list for each start of the training, `lost` for a
TPU that is taken away then; `fail` are words of calls that fail once each.
"""

import json
import os
import pathlib
import sys

folder = pathlib.Path(os.environ["STUB"])
words = sys.argv[1:]
line = " ".join(words)
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps(words) + "\n")
plan = json.loads((folder / "plan").read_text())


def end(status: int, out: str = "", err: str = "") -> None:
    (folder / "plan").write_text(json.dumps(plan))
    if out:
        print(out)
    if err:
        print(err, file=sys.stderr)
    sys.exit(status)


for words_of_it in plan.get("fail", []):
    if words_of_it in line:
        plan["fail"].remove(words_of_it)
        end(1, err=f"ERROR: (gcloud) {words_of_it}")

if "describe" in words:
    states = plan.get("now", [])
    if not states:
        end(1, err="ERROR: (gcloud) NOT_FOUND: it was not found")
    end(0, states.pop(0) if len(states) > 1 else states[0])
elif "create" in words:
    plan["now"] = list(plan.get("states", ["ACTIVE"]))
elif "delete" in words:
    plan["now"] = []
elif "systemd-run" in line:
    plan["life"] = plan["lives"].pop(0)
elif "systemctl show" in line:
    life = plan.get("life", [])
    answer = life.pop(0) if len(life) > 1 else (life[0] if life else "dead 0")
    if answer == "lost":
        plan["now"] = ["SUSPENDED"]
        end(255, err="ERROR: (gcloud) the connection was lost")
    end(0, answer)
end(0)
