#!/usr/bin/env bash
# Starts a training on all machines of a TPU.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/cloud.sh
source "$here/../cloud.sh"

usage() {
  cat <<'END'
usage: bash launch/tpu/run.sh --name N --zone Z [OPTION ...] -- TRAIN ARGUMENTS

Starts `python -m vt_flax train TRAIN ARGUMENTS` on every machine of a TPU, as a service
of systemd: it outlives this command and the connection, gets a SIGTERM and two minutes
to save when the machine is shut down, and writes to run.log in the home folder. One
that is at work is stopped first, and saves. Paths are those of the machines, from
vt_flax: --workdir ../bucket/runs/r1 is in the bucket that install.sh has mounted.

END
  common_options
}

parse "$@"
need name zone
need_training

printf -v arguments '%q ' "${rest[@]}"
# shellcheck disable=SC2088 # expanded on the machine
on_workers all "$(service "~/venv/bin/python -m vt_flax train ${arguments% }")"
