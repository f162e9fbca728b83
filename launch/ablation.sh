#!/usr/bin/env bash
# The paper's ablations, one after another, and a table of them beside the paper's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Those of configs/ablations.py; the others name recurrent's model again.
all=(resnet recurrent static pooling clustering no_interaction graph tokens32 tokens64
  no_projector v1 no_position)
same=(transformer tokens16)

rows='' depth=18 workdir='' keep_going='' mode=train changes=()
usage() {
  cat <<'END'
usage: bash launch/ablation.sh [OPTION ...] [--config.k=v ...]

Makes .venv, installs vt_flax, trains the rows of configs/ablations.py one after another,
each in the workdir ROW-DEPTH of a folder, and ends in a table of all that are there, the
paper's figures beside them. Run the same command again to go on after a stop: rows that
are finished have nothing left to do. Ctrl-C, or a SIGTERM, is passed on: the row that is
under way is saved.

  --rows A,B,...  which (all, but those that name the same model again)
  --depth D       18 or 34 (18)
  --workdir W     the folder (runs/ablation; of --pod ../bucket/runs/ablation)
  --data_dir D    where imagenet2012 is prepared
  --keep_going    does the other rows when one fails
  --dry_run       prints the commands and runs none
  --pod           prints the commands that train each row on a TPU of its own: see
                  launch/tpu/resubmit.sh, whose $POD_NAME (with the row's behind),
                  $POD_ZONE and $POD_TYPE must be set
  --help          this text

Rows may need overrides of their own, such as resnet, which has no tokens: give them to
calls of their own, with the same --workdir. On CIFAR-10 at small size:

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

Exit status: that of the first row that failed; 4 if it was stopped.
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
    --data_dir | --data-dir) changes+=("--config.data.data_dir=${2:-}") ;;
    --keep_going | --keep-going) keep_going=yes words=1 ;;
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

# arguments_of ROW: sets `arguments` to what train is told.
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

# What a later row cannot be told is known before days of training.
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
# Started in the background, it ignores Ctrl-C; a SIGTERM makes it save.
trap 'stopped=yes; [ -z "$pid" ] || kill -TERM "$pid" 2>/dev/null || true' INT TERM
failed=0
for row in "${rows[@]}"; do
  echo "== $row, depth $depth"
  arguments_of "$row"
  "$VENV/bin/python" -m vt_flax train "${arguments[@]}" &
  pid=$!
  # For a signal that came before there was one to pass it on to.
  [ -z "$stopped" ] || kill -TERM "$pid"
  while true; do
    status=0
    wait "$pid" || status=$?
    # A signal ends the waiting, not the process.
    kill -0 "$pid" 2>/dev/null || break
  done
  pid=''
  if [ -n "$stopped" ] || [ "$status" = 4 ]; then
    echo "stopped at row $row: run the same command to go on" >&2
    exit 4
  fi
  [ "$status" != 0 ] || continue
  [ "$failed" != 0 ] || failed=$status
  [ -n "$keep_going" ] || fail "row $row ended with status $status" "$status"
  echo "== row $row ended with status $status: going on with the others" >&2
done
echo "== all rows"
"${table[@]}" || [ "$failed" != 0 ] || failed=$?
exit "$failed"
