#!/usr/bin/env bash
# Trains in several processes on this machine, as the machines of a pod do.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

devices=1 port='' dry_run='' count=''
usage() {
  cat <<'END'
usage: bash launch/local_pod.sh N [--devices K] [--port P] [--dry-run] [TRAIN ARGUMENT ...]

Makes .venv, installs vt_flax, and trains in N processes of K CPU devices each, which
find each other as those of a pod do. The default is the quickstart in runs/local_pod.
Process 0 prints here; the output of process I is in local_pod-I.log in the workdir's
parent folder. Ctrl-C or a SIGTERM saves, and stops all.

  --devices K   CPU devices of each process (1)
  --port P      port of process 0 (default: a free one)

environment variables:
  PYTHON   Python to make the environment with (the newest of 3.13, 3.12 and 3.11 that
           runs: on PATH, from pyenv or uv)
  VENV     where the environment is (.venv)

Exit status: the highest of the processes.
END
}

fail() {
  echo "error: $1" >&2
  exit 2
}

# The arguments of train; a later --config or --workdir replaces an earlier one.
train=(--config configs/quickstart.py --workdir runs/local_pod)
workdir=runs/local_pod
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --devices) devices=${2:-}; shift ;;
    --port) port=${2:-}; shift ;;
    --dry-run) dry_run=yes ;;
    --workdir) workdir=${2:-} train+=("--workdir=$workdir"); shift ;;
    --workdir=*) workdir=${1#*=} train+=("$1") ;;
    *) if [ -z "$count" ]; then count=$1; else train+=("$1"); fi ;;
  esac
  shift || fail "an option needs a value (see --help)"
done
for number in "$count" "$devices" "${port:-1}"; do
  [[ $number =~ ^[1-9][0-9]*$ ]] ||
    fail "'$number' is no number: bash launch/local_pod.sh N [OPTION ...] (see --help)"
done

if [ -n "$dry_run" ]; then
  VENV=${VENV:-.venv}
  port=${port:-PORT}
else
  # shellcheck source=launch/common.sh
  source launch/common.sh
  make_environment train
  export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}
  [ -n "$port" ] || port=$("$VENV/bin/python" -c 'import socket
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    print(probe.getsockname()[1])')
  logs=$(dirname "$workdir")
  mkdir -p "$logs"
fi

export JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=$devices
pids=()
# Processes in the background ignore Ctrl-C; a SIGTERM makes them save.
trap '[ ${#pids[@]} = 0 ] || kill -TERM "${pids[@]}" 2>/dev/null' INT TERM
for ((i = 0; i < count; i++)); do
  command=("$VENV/bin/python" -m vt_flax train "${train[@]}"
    --coordinator "127.0.0.1:$port" --processes "$count" --process "$i")
  if [ -n "$dry_run" ]; then
    printf -v line '%q ' "JAX_PLATFORMS=$JAX_PLATFORMS" "XLA_FLAGS=$XLA_FLAGS" \
      "${command[@]}"
    echo "+ ${line% }"
    continue
  fi
  if [ "$i" = 0 ]; then
    "${command[@]}" &
  else
    "${command[@]}" >"$logs/local_pod-$i.log" 2>&1 &
  fi
  pids+=($!)
done
[ -z "$dry_run" ] || exit 0

worst=0
for pid in "${pids[@]}"; do
  while true; do
    status=0
    wait "$pid" || status=$?
    # A signal ends the waiting, not the process.
    kill -0 "$pid" 2>/dev/null || break
  done
  [ "$status" -le "$worst" ] || worst=$status
done
[ "$worst" = 0 ] || echo "output of the other processes: $logs/local_pod-*.log" >&2
exit "$worst"
