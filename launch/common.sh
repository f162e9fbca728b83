# shellcheck shell=bash
# Sourced by the other scripts: the virtual environment and the installation.

# check_python: ends with a line if there is no Python to make an environment with.
check_python() {
  local python=${PYTHON:-python3}
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: $python is missing or older than 3.11: set PYTHON to a newer one" >&2
    exit 2
  fi
}

# find_python VERSION: prints the path of an interpreter of this version, such as 3.11,
# or returns 1 if none runs. A shim may be on PATH that only prints a message.
find_python() {
  local candidate
  while read -r candidate; do
    if "$candidate" -c "import sys, venv, ensurepip
sys.exit('%d.%d' % sys.version_info[:2] != '$1' or sys.version_info[3] != 'final')" \
      </dev/null >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done < <(type -aP "python$1" python3; ls -d ~/.pyenv/versions/"$1".*/bin/python)
  return 1
} 2>/dev/null

# make_venv FOLDER: creates a virtual environment in $VENV, or in FOLDER.
make_venv() {
  local python=${PYTHON:-python3}
  VENV=${VENV:-$1}
  check_python
  if [ ! -x "$VENV/bin/python" ]; then
    echo "== making the environment $VENV"
    if ! "$python" -m venv "$VENV"; then
      echo "error: $python -m venv failed: install its venv module" \
        "(Debian: apt-get install python3-venv)" >&2
      exit 2
    fi
  fi
}

# make_environment EXTRAS: creates .venv (or uses $VENV) and installs the project with
# the given extras, if anything that decides what is installed has changed.
make_environment() {
  local extras=$1 stamp
  make_venv .venv
  stamp="$extras $(cat setup.cfg pyproject.toml | cksum)"
  if [ "$(cat "$VENV/.installed" 2>/dev/null)" != "$stamp" ]; then
    echo "== installing vt_flax${extras:+ with $extras}"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
      --editable ".${extras:+[$extras]}"
    echo "$stamp" >"$VENV/.installed"
  fi
}
