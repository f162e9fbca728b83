#!/usr/bin/env bash
# Gives a TPU back.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/cloud.sh
source "$here/../cloud.sh"

usage() {
  cat <<'END'
usage: bash launch/tpu/delete.sh --name N --zone Z [OPTION ...]

Deletes a TPU, its queued resource and what is on its machines' disks. Workdirs in a
bucket stay.

END
  common_options
}

parse "$@"
need name zone
cloud compute tpus queued-resources delete "$name" --force
