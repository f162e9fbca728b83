#!/usr/bin/env bash
# Environment, installation with test extras, lint and tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'EOF'
usage: bash launch/test.sh [--fast] [PYTEST ARGUMENT ...]

Makes .venv, installs vt_flax with the extras in EXTRAS, and runs ruff, mypy and pytest.
Tests whose optional dependency is absent are skipped, by name.

  --fast   leave out the tests that are marked slow

environment variables:
  EXTRAS   extras to install (test); also torch and tpu, whose tests are skipped without
  PYTHON   Python to make the environment with (the newest of 3.13, 3.12 and 3.11 that
           runs: on PATH, from pyenv or uv)
  VENV     where the environment is (.venv)
EOF
}

case ${1:-} in
  -h | --help) usage; exit 0 ;;
  --fast) shift; set -- -m "not slow" "$@" ;;
esac

# shellcheck source=launch/common.sh
source launch/common.sh
make_environment "${EXTRAS:-test}"
echo "== lint"
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
"$VENV/bin/mypy"
echo "== tests"
# A file's tests stay together, for what they prepare is prepared once; in the order of
# tests/conftest.py.
# One more than there are cores: some tests wait, for a process or for its silence.
cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
workers=$((cores + 1))
"$VENV/bin/python" -m pytest -n "$((workers < 4 ? workers : 4))" --dist loadfile \
  --no-loadscope-reorder "$@"
