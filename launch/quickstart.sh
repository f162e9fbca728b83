#!/usr/bin/env bash
# From a fresh clone to a trained Visual Transformer: environment, installation,
# training and evaluation on handwritten digits, and a picture of the tokens.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'EOF'
usage: bash launch/quickstart.sh [--extra EXTRA] [WORKDIR] [--config.k=v ...]

Makes .venv, installs vt_flax[train], trains a small VT-ResNet-18 on the embedded digits
dataset, evaluates it and draws its token attention. WORKDIR is runs/quickstart by
default; run it again to resume after a stop. The line `training steps ...` names the
devices.

  --extra EXTRA   cuda for NVIDIA GPUs, tpu for TPUs; without it JAX runs on the CPU

environment variables:
  PYTHON   Python to make the environment with (the newest of 3.13, 3.12 and 3.11 that
           runs: on PATH, from pyenv or uv)
  VENV     where the environment is (.venv)
EOF
}

fail() {
  echo "error: $1" >&2
  exit 2
}

extra='' workdir='' passed=''
for ((left = $#; left > 0; left--)); do
  word=$1
  shift
  case $word in
    -h | --help) usage; exit 0 ;;
    --extra)
      [ "$left" -gt 1 ] || fail "--extra needs a value: cuda or tpu"
      extra=$1 left=$((left - 1))
      shift
      ;;
    --extra=*) extra=${word#*=} ;;
    *)
      # What is no option of this script goes to the end, for train.
      if [ -z "$workdir$passed" ] && [ "${word#-}" = "$word" ]; then
        workdir=$word
      else
        passed=yes
        set -- "$@" "$word"
      fi
      ;;
  esac
done
workdir=${workdir:-runs/quickstart}
case $extra in
  '' | cuda | tpu) ;;
  *) fail "--extra $extra: choose cuda or tpu" ;;
esac

# shellcheck source=launch/common.sh
source launch/common.sh
make_environment "train${extra:+,$extra}"
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}

echo "== training in $workdir"
"$VENV/bin/python" -m vt_flax train --config configs/quickstart.py \
  --workdir "$workdir" "$@"
echo "== evaluating the newest checkpoint"
"$VENV/bin/python" -m vt_flax evaluate --workdir "$workdir" \
  --token_picture "$workdir/tokens.png"
echo "== done: metrics in $workdir/metrics.jsonl, token coefficients in $workdir/tokens.png"
