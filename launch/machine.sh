# shellcheck shell=bash
# Sourced on machines of the cloud, in the sources' folder.

# machine_environment EXTRAS: finds or installs a Python that is new enough, and makes
# the environment in ~/venv.
machine_environment() {
  local candidate
  PYTHON='' VENV=$HOME/venv
  for candidate in python3.13 python3.12 python3.11 python3; do
    if "$candidate" -c \
      'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      PYTHON=$candidate
      break
    fi
  done
  if [ -z "$PYTHON" ]; then
    # Images come with older ones, or without what makes environments.
    sudo apt-get update -q
    if ! sudo apt-get install -qy python3.11 python3.11-venv; then
      sudo apt-get install -qy software-properties-common
      sudo add-apt-repository -y ppa:deadsnakes/ppa
      sudo apt-get install -qy python3.11 python3.11-venv
    fi
    PYTHON=python3.11
  fi
  # shellcheck source=launch/common.sh
  source launch/common.sh
  make_environment "$1"
}
