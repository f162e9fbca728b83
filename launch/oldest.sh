#!/usr/bin/env bash
# The oldest libraries that setup.cfg allows: environment, installation and tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'EOF'
usage: bash launch/oldest.sh [PYTEST ARGUMENT ...]

Makes .cache/oldest, installs vt_flax there with the lowest version of each library that
setup.cfg allows, and runs the tests that use most of them, or the given ones.

environment variables:
  PYTHON   Python to make the environment with (3.11: not all of the oldest libraries
           are built for newer ones)
  VENV     where the environment is (.cache/oldest)
EOF
}

case ${1:-} in
  -h | --help) usage; exit 0 ;;
esac
if [ $# -eq 0 ]; then
  set -- tests/unit/training/test_{checkpoint,config,config_schema,logging,optimizer}.py \
    tests/unit/nn/test_{tokenizers,transformer}.py tests/unit/models/test_registry.py \
    tests/unit/data/test_{host,images,order,batches,sources}.py \
    tests/unit/data/augment/test_operations.py \
    tests/unit/paper/test_chart.py tests/unit/viz tests/unit/weights \
    tests/unit/inference/test_export.py tests/integration/test_{notebooks,wheel}.py \
    tests/integration/test_pods.py::test_two_processes_train_as_one
fi

# shellcheck source=launch/common.sh
source launch/common.sh
make_venv .cache/oldest 3.11
echo "== installing the oldest libraries"
# pip takes the newest only.
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check uv
"$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" \
  --resolution lowest-direct --editable '.[test]'
echo "== tests"
"$VENV/bin/python" -m pytest "$@"
