# shellcheck shell=bash
# Sourced by the other scripts: the Python interpreter, the virtual environment and the
# installation.

# Versions of Python that vt_flax supports, the newest first; setup.cfg has the same.
supported=(3.13 3.12 3.11)
supported_range="${supported[2]} to ${supported[0]}"

# Run by an interpreter: prints its version and, after a space, why it cannot make an
# environment for vt_flax. Python 2 can run it too.
examination='
import sys, sysconfig
minor = "%d.%d" % sys.version_info[:2]
reason = ""
if minor not in sys.argv[1:]:
    reason = "is not supported"
elif sys.version_info[3] != "final":
    reason = "is a pre-release"
elif sysconfig.get_config_var("Py_GIL_DISABLED"):
    reason = "is free-threaded, for which not all libraries are built"
else:
    try:
        import ensurepip, venv
    except ImportError:
        reason = "has no venv module (Debian, Ubuntu: apt-get install python%s-venv)"
        reason %= minor
print("%s %s" % (sys.version.split()[0], reason))
'

environment_error() {
  echo "error: $1" >&2
  exit 2
}

# examine PYTHON: sets `version` to the interpreter's version, empty if it does not run,
# and `reason` to why it cannot make an environment, empty if it can.
examine() {
  local output
  version='' reason='does not run'
  # A shim may print a message in place of running Python, and may succeed.
  output=$("$1" -c "$examination" "${supported[@]}" 2>/dev/null </dev/null) || return 0
  if [[ $output =~ ^[0-9]+\.[0-9]+\.[^\ ]+\  ]]; then
    read -r version reason <<<"$output"
  fi
}

# interpreters MINOR: prints the paths that may be a Python of this version, such as 3.13:
# by its name on PATH, what pyenv and uv have installed, and any other Python on PATH.
interpreters() {
  local uv=${XDG_DATA_HOME:-${HOME:-}/.local/share}/uv/python
  type -aP "python$1" || true
  # The newest patch release first; a pattern without a match stays as it is.
  printf '%s\n' "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$1."*"/bin/python$1" \
    "${UV_PYTHON_INSTALL_DIR:-$uv}/cpython-$1."*"/bin/python$1" | sort -rV
  type -aP python3 python || true
}

# choose_python MINOR...: sets PYTHON, if it is not set, to the first interpreter of the
# first of these versions that can make an environment, and `version` to its version.
choose_python() {
  local minor candidate wanted unusable=''
  if [ -n "${PYTHON:-}" ]; then
    examine "$PYTHON"
    [ -z "$reason" ] || environment_error "PYTHON=$PYTHON ${version:+is Python $version,\
 which }$reason: set it to a Python $supported_range, or unset it"
    return
  fi
  for minor in "$@"; do
    while IFS= read -r candidate; do
      examine "$candidate"
      [[ $version == "$minor".* ]] || continue
      if [ -z "$reason" ]; then
        PYTHON=$candidate
        return
      fi
      unusable=${unusable:-"; $candidate is Python $version, which $reason"}
    done < <(interpreters "$minor")
  done
  wanted=$(printf ', %s' "$@")
  environment_error "no Python ${wanted:2} runs, from PATH, pyenv or uv$unusable: install\
 one, or set PYTHON to it"
}

# make_venv FOLDER MINOR...: creates a virtual environment in $VENV, or in FOLDER, with
# $PYTHON or a Python of the first of these versions that is there. Uses the environment
# if it exists. Sets `version` to its version.
make_venv() {
  local folder=$1 asked=''
  shift
  VENV=${VENV:-$folder}
  if [ -n "${PYTHON:-}" ]; then
    choose_python
    asked=$version
  fi
  # A link without a target is what remains when the interpreter was uninstalled.
  if [ -e "$VENV/bin/python" ] || [ -L "$VENV/bin/python" ]; then
    examine "$VENV/bin/python"
    local other="remove the folder, or set VENV to another"
    [ -n "$version" ] || environment_error "$VENV/bin/python does not run: $other"
    # It needs no venv module of its own.
    [ -z "$reason" ] || [[ $reason == *venv* ]] ||
      environment_error "$VENV has Python $version, which $reason: $other"
    [ -z "$asked" ] || [ "${asked%.*}" = "${version%.*}" ] ||
      environment_error "$VENV has Python $version, PYTHON=$PYTHON is $asked: $other"
    echo "== Python $version, environment $VENV"
  else
    choose_python "$@"
    echo "== Python $version ($PYTHON), new environment $VENV"
    "$PYTHON" -m venv "$VENV" || environment_error "$PYTHON -m venv $VENV failed"
  fi
  # Environments that were interrupted, or that uv has made, have no pip.
  "$VENV/bin/python" -c 'import pip' 2>/dev/null ||
    "$VENV/bin/python" -m ensurepip >/dev/null 2>&1 ||
    environment_error "$VENV has no pip: remove the folder, or set VENV to another"
}

# make_environment EXTRAS: creates .venv (or uses $VENV) and installs the project with
# the given extras, if anything that decides what is installed has changed.
make_environment() {
  local extras=$1 stamp
  make_venv .venv "${supported[@]}"
  stamp="$extras $version $(cat setup.cfg pyproject.toml .ci/constraints.txt | cksum)"
  if [ "$(cat "$VENV/.installed" 2>/dev/null)" != "$stamp" ]; then
    echo "== installing vt_flax with $extras"
    # An installation that fails leaves something between the old and the new.
    rm -f "$VENV/.installed"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
      --editable ".[$extras]"
    echo "$stamp" >"$VENV/.installed"
  fi
}
