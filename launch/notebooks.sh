#!/usr/bin/env bash
# The notebooks as in Colab: an empty folder, a fresh environment, and the wheel.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'USAGE'
usage: bash launch/notebooks.sh [NAME ...]

Builds the wheel, makes an environment with Jupyter alone, and runs notebooks of
launch/notebooks (default: all) from top to bottom in an empty folder, with the wheel
beside them: the first one installs it. Prints how long each took, and keeps them with
their outputs in .cache/notebooks/run.

environment variables:
  PYTHON   Python to make the environment with (the newest of 3.13, 3.12 and 3.11 that
           runs: on PATH, from pyenv or uv)
USAGE
}

case ${1:-} in
  -h | --help) usage; exit 0 ;;
esac
if [ $# -eq 0 ]; then
  for path in launch/notebooks/*.ipynb; do
    set -- "$@" "$(basename "$path" .ipynb)"
  done
fi
for name in "$@"; do
  if [ ! -e "launch/notebooks/$name.ipynb" ]; then
    echo "error: there is no notebook $name: see launch/notebooks" >&2
    exit 2
  fi
done

# shellcheck source=launch/common.sh
source launch/common.sh
choose_python "${supported[@]}"
folder=$PWD/.cache/notebooks
rm -rf "$folder"
mkdir -p "$folder/run"
# A new environment each time, not one of the user's.
unset VENV
make_venv "$folder/venv" "${supported[@]}"
echo "== installing what runs notebooks, and building the wheel"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
  nbclient ipykernel build
"$VENV/bin/python" -m build --outdir "$folder/run" . >"$folder/build.log"
for name in "$@"; do
  cp "launch/notebooks/$name.ipynb" "$folder/run"
  echo "== $name"
  begun=$SECONDS
  (cd "$folder/run" && "$VENV/bin/jupyter-execute" --inplace --timeout=1800 "$name.ipynb")
  echo "== $name: $((SECONDS - begun)) seconds"
done
echo "== done: with their outputs in $folder/run"
