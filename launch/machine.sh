# shellcheck shell=bash
# Sourced on machines of the cloud, in the sources' folder.

# apt_get WORD...: runs apt-get as root. A machine that has just started updates itself:
# waits up to ten minutes for it to release apt's locks.
apt_get() {
  local output last=$((SECONDS + 600))
  # The option covers the locks of `install`, but `update` does not wait for its own.
  until output=$(sudo env LC_ALL=C DEBIAN_FRONTEND=noninteractive \
    apt-get -q -o DPkg::Lock::Timeout=600 "$@" 2>&1); do
    if [[ $output != *"E: Could not get lock"* ]] || [ "$SECONDS" -ge "$last" ]; then
      echo "$output" >&2
      echo "error: apt-get $* failed" >&2
      exit 1
    fi
    echo "== waiting for another apt-get on this machine"
    sleep 5
  done
}

# machine_environment EXTRAS: makes the environment in ~/venv with a Python that uv
# brings, and installs the project. The machine's own Python is older than what the newest
# JAX needs, or a release candidate; it serves to install uv.
machine_environment() {
  local uv=$HOME/.vt_flax/uv/bin/uv
  # shellcheck source=launch/common.sh
  source launch/common.sh
  local newest=${supported[0]}
  # An environment that was made by an earlier version may have another Python.
  examine "$HOME/venv/bin/python"
  if [[ $version != "$newest".* || $reason == "is a pre-release" ]]; then
    if ! python3 -c 'import ensurepip' 2>/dev/null; then
      apt_get update
      apt_get install -y python3-venv
    fi
    [ ! -e "$HOME/venv" ] || echo "== replacing the environment $HOME/venv"
    python3 -m venv --clear "$HOME/.vt_flax/uv"
    "$HOME/.vt_flax/uv/bin/python" -m pip install --quiet --disable-pip-version-check uv
    "$uv" venv --quiet --clear --managed-python --python "$newest" "$HOME/venv"
  fi
  PYTHON='' VENV=$HOME/venv
  make_environment "$1"
}
