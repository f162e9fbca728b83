#!/usr/bin/env bash
# Trains the paper's ablations one after another, and compares them with the paper.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The rows of configs/ablations.py; those of `same` have the model of recurrent again.
all=(resnet recurrent static pooling clustering no_interaction graph tokens32 tokens64
  no_projector v1 no_position)
same=(transformer tokens16)

rows='' depth=18 workdir='' mode=train
# Overrides for every row; not empty, for bash 3.2 (macOS) cannot expand empty arrays.
changes=(--config.data.data_dir=)
usage() {
  cat <<'END'
usage: bash launch/ablation.sh [OPTION ...] [--config.k=v ...]

Makes .venv, installs vt_flax, trains the rows of configs/ablations.py one after another,
each in the workdir ROW-DEPTH of a folder, and prints a table of all rows in the folder
beside the paper's figures. Run the same command again to resume: finished rows are
skipped. Ctrl-C or a SIGTERM saves the current row.

  --rows A,B,...  rows to train (default: one row for each different model)
  --depth D       depth of the ResNet, 18 or 34 (18)
  --workdir W     folder of the workdirs (runs/ablation; --pod: ../bucket/runs/ablation)
  --data_dir D    folder in which imagenet2012 is prepared
  --dry_run       print the commands and run none
  --pod           print the commands that train each row on a TPU of its own, by
                  launch/tpu/resubmit.sh; $POD_NAME (which the row's name is appended
                  to), $POD_ZONE and $POD_TYPE must be set
  --help          print this text

If a row needs other overrides, as resnet, which has no tokens, train it by a command of
its own with the same --workdir. On CIFAR-10 at small size:

  bash launch/ablation.sh --rows recurrent,static,graph --data_dir DATA \
    --config.data.name=cifar10 --config.data.eval_split=test \
    --config.data.image_size=32 --config.data.train_crop=pad \
    --config.data.eval_resize=0 --config.model.stem=small --config.model.width=16 \
    --config.model.token_channels=256 --config.model.group_channels=16 \
    --config.duration='20 epochs' --config.schedule.name=cosine

environment variables:
  PYTHON   Python to make the environment with (the newest of 3.13, 3.12 and 3.11 that
           runs: on PATH, from pyenv or uv)
  VENV     where the environment is (.venv)

Exit status: that of the row that failed; 4 if it was stopped.
END
}

fail() {
  echo "error: $1" >&2
  exit "${2:-2}"
}

while [ $# -gt 0 ]; do
  words=2
  case $1 in
    -h | --help) usage; exit 0 ;;
    --rows) rows=${2:-} ;;
    --depth) depth=${2:-} ;;
    --workdir) workdir=${2:-} ;;
    --data_dir) changes+=("--config.data.data_dir=${2:-}") ;;
    --dry_run | --dry-run) mode=print words=1 ;;
    --pod) mode=pod words=1 ;;
    --config.*=*) changes+=("$1") words=1 ;;
    *) fail "unknown option $1 (see --help)" ;;
  esac
  [ $# -ge "$words" ] || fail "$1 needs a value"
  shift "$words"
done
[[ $depth =~ ^(18|34)$ ]] || fail "--depth $depth: write 18 or 34"
IFS=, read -ra rows <<<"${rows:-$(IFS=,; echo "${all[*]}")}"
for row in "${rows[@]}"; do
  case " ${all[*]} ${same[*]} " in
    *" $row "*) ;;
    *) fail "--rows $row: choose from ${all[*]} ${same[*]}" ;;
  esac
done

# show WORD...: prints a command as it can be pasted.
show() {
  local line
  printf -v line '%q ' "$@"
  echo "+ ${line% }"
}

# arguments_of ROW: sets `arguments` to train's arguments.
arguments_of() {
  arguments=(--config "configs/ablations.py:$1,$depth" --workdir "$workdir/$1-$depth"
    "${changes[@]}")
}

if [ "$mode" = pod ]; then
  for option in POD_NAME POD_ZONE POD_TYPE; do
    [ -n "${!option:-}" ] || fail "--pod: \$$option is not set (see --help)"
  done
  workdir=${workdir:-../bucket/runs/ablation}
  for row in "${rows[@]}"; do
    arguments_of "$row"
    # Names of machines have no underscore.
    show bash launch/tpu/resubmit.sh --name "$POD_NAME-${row//_/-}-$depth" \
      --zone "$POD_ZONE" --type "$POD_TYPE" -- "${arguments[@]}"
  done
  exit 0
fi

workdir=${workdir:-runs/ablation}
if [ "$mode" = print ]; then
  VENV=${VENV:-.venv}
else
  # shellcheck source=launch/common.sh
  source launch/common.sh
  make_environment train
  export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}
fi
table=("$VENV/bin/python" -m vt_flax summarize --ablation "$workdir")
if [ "$mode" = print ]; then
  for row in "${rows[@]}"; do
    arguments_of "$row"
    show "$VENV/bin/python" -m vt_flax train "${arguments[@]}"
  done
  show "${table[@]}"
  exit 0
fi

# A mistake in a later row is found before days of training.
"$VENV/bin/python" -c '
import sys
from vt_flax.cli import startup
from vt_flax.errors import UserError
from vt_flax.training.config import load_config

def main(words):
    for row in words[0].split(","):
        try:
            load_config(f"configs/ablations.py:{row},{words[1]}", words[2:])
        except UserError as error:
            raise UserError(f"row {row}: {error}") from error

startup.run(main)
' "$(IFS=,; echo "${rows[*]}")" "$depth" "${changes[@]}"

pid='' stopped=''
# A process in the background ignores Ctrl-C; a SIGTERM makes it save.
trap 'stopped=yes; [ -z "$pid" ] || kill -TERM "$pid" 2>/dev/null || true' INT TERM
for row in "${rows[@]}"; do
  echo "== $row, depth $depth"
  arguments_of "$row"
  "$VENV/bin/python" -m vt_flax train "${arguments[@]}" &
  pid=$!
  # A signal may have come before there was a process.
  [ -z "$stopped" ] || kill -TERM "$pid"
  while true; do
    status=0
    wait "$pid" || status=$?
    # A signal interrupts `wait`, not the process.
    kill -0 "$pid" 2>/dev/null || break
  done
  pid=''
  if [ -n "$stopped" ] || [ "$status" = 4 ]; then
    fail "stopped at row $row: run the same command to resume" 4
  fi
  [ "$status" = 0 ] || fail "row $row ended with status $status" "$status"
done
echo "== all rows"
"${table[@]}"
