#!/usr/bin/env bash
# From a fresh clone to a trained Visual Transformer: environment, installation,
# training and evaluation on handwritten digits, and a picture of the tokens.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'EOF'
usage: bash launch/quickstart.sh [WORKDIR] [--config.k=v ...]

Makes .venv, installs vt_flax, trains VT-ResNet-18 at small size on the embedded
digits dataset, evaluates it and draws its tokens. WORKDIR is runs/quickstart by
default; run it again to go on after a stop.

environment variables:
  PYTHON   Python to make the environment with (the newest of 3.13, 3.12 and 3.11 that
           runs: on PATH, from pyenv or uv)
  VENV     where the environment is (.venv)
EOF
}

case ${1:-} in
  -h | --help) usage; exit 0 ;;
esac
workdir=runs/quickstart
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
  workdir=$1
  shift
fi

# shellcheck source=launch/common.sh
source launch/common.sh
make_environment ""
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}

echo "== training in $workdir"
"$VENV/bin/python" -m vt_flax.train --config configs/quickstart.py \
  --workdir "$workdir" "$@"
echo "== evaluating the newest checkpoint"
"$VENV/bin/python" -m vt_flax.evaluate --workdir "$workdir" \
  --token_picture "$workdir/tokens.png"
echo "== done: metrics in $workdir/metrics.jsonl, token coefficients in $workdir/tokens.png"
