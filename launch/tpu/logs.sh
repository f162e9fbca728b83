#!/usr/bin/env bash
# Shows what the machines of a TPU have written, and follows it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/cloud.sh
source "$here/../cloud.sh"

worker=0 lines=50 follow=' -F'
usage() {
  cat <<'END'
usage: bash launch/tpu/logs.sh --name N --zone Z [OPTION ...]

Shows the end of run.log of a machine, and what is written to it from now on.

  --worker I     which machine, or all (0, which reports the progress)
  --lines K      how many lines (50)
  --no-follow    ends there
END
  common_options
}

own_option() {
  case $1 in
    --worker) worker=$2 ;;
    --lines) lines=$2 ;;
    --no-follow) follow='' words=1 ;;
    *) return 1 ;;
  esac
}

parse "$@"
need name zone
on_workers "$worker" "tail -n $lines$follow run.log"
