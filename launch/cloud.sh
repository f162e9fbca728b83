# shellcheck shell=bash
# Sourced by the scripts that use Google Cloud: their options, and how gcloud is called.

name=${POD_NAME:-} zone=${POD_ZONE:-} project=${POD_PROJECT:-} slices=1 dry_run=

# What every script takes; each adds its own, and its purpose, in `usage`.
common_options() {
  cat <<'END'
  --name N       of the machines ($POD_NAME)
  --zone Z       such as us-central1-a ($POD_ZONE)
  --project P    of Google Cloud ($POD_PROJECT; default: gcloud's own)
  --slices K     TPUs that train together, if there are several (1)
  --dry-run      print the exact commands and run none
  --help         this text
END
}

fail() {
  echo "error: $1" >&2
  exit "${2:-2}"
}

# own_option OPTION VALUE: takes an option that is a script's own: each that has some
# says so anew. Sets `words` to 1 for one without a value; fails for an unknown one.
own_option() {
  return 1
}

# parse WORD...: reads the command line. What comes after -- is left in `rest`.
parse() {
  rest=()
  while [ $# -gt 0 ]; do
    words=2
    case $1 in
      --name) name=${2:-} ;;
      --zone) zone=${2:-} ;;
      --project) project=${2:-} ;;
      --slices) slices=${2:-} ;;
      --dry-run) dry_run=yes words=1 ;;
      -h | --help) usage; exit 0 ;;
      --) shift; rest=("$@"); break ;;
      *) own_option "$1" "${2:-}" || fail "unknown option $1 (see --help)" ;;
    esac
    [ $# -ge "$words" ] || fail "$1 needs a value"
    shift "$words"
  done
  [[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices $slices: write a number"
}

# need NAME...: ends if one of the options has no value.
need() {
  local option
  for option in "$@"; do
    [ -n "${!option:-}" ] || fail "--${option//_/-} is missing (see --help)"
  done
}

# need_training: ends if `rest` is no command line for train.
need_training() {
  case " ${rest[*]} " in
    *" --workdir"*) ;;
    *) fail "what train is to get is missing: ... -- --config F --workdir D ..." ;;
  esac
}

# packed: the archive of the sources that `pack` makes.
packed=.cache/vt_flax.tar.gz

# pack: packs the sources of this folder, as they are, to be unpacked by `$unpack` on a
# machine.
pack() {
  local root
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  packed=$root/.cache/vt_flax.tar.gz
  run mkdir -p "$root/.cache"
  run tar -czf "$packed" -C "$root" --exclude=./.git --exclude='./.venv*' \
    --exclude=./.cache --exclude=./runs .
}
# shellcheck disable=SC2034
unpack="rm -rf vt_flax && mkdir vt_flax && tar -xzf vt_flax.tar.gz -C vt_flax"

# service COMMAND: prints the command that starts another on a machine as the service
# vt_flax of systemd, in the sources' folder, with its output in run.log.
service() {
  local quoted
  # Read by two shells: the machine's, and the service's.
  printf -v quoted '%q' "cd ~/vt_flax && exec $1"
  echo "sudo systemctl stop vt_flax 2>/dev/null;" \
    "sudo systemctl reset-failed vt_flax 2>/dev/null;" \
    "sudo systemd-run --unit=vt_flax --uid=\$(id -u) --gid=\$(id -g)" \
    "--setenv=HOME=\$HOME --property=RemainAfterExit=yes" \
    "--property=TimeoutStopSec=120 --property=StandardOutput=append:\$HOME/run.log" \
    "--property=StandardError=append:\$HOME/run.log bash -c $quoted"
}

# What the service is at, and with what status it ended: `exited 0`.
# shellcheck disable=SC2034
ask='systemctl show vt_flax --property=SubState,ExecMainStatus --value | xargs'

# run WORD...: runs a command; with --dry-run prints it, as it can be pasted.
run() {
  local line
  if [ -n "$dry_run" ]; then
    printf -v line '%q ' "$@"
    echo "+ ${line% }"
  else
    "$@"
  fi
}

# cloud WORD...: calls gcloud with the zone and project that all commands share.
cloud() {
  local command=(gcloud "$@" "--zone=$zone" --quiet)
  [ -z "$project" ] || command+=("--project=$project")
  run "${command[@]}"
}

# nodes: prints the names of the TPUs.
nodes() {
  local i
  if [ "$slices" = 1 ]; then
    echo "$name"
  else
    for ((i = 0; i < slices; i++)); do echo "$name-$i"; done
  fi
}

# on_workers WHICH COMMAND: runs a command on one machine of each TPU, by number, or on
# all.
on_workers() {
  local node
  for node in $(nodes); do
    cloud compute tpus tpu-vm ssh "$node" "--worker=$1" "--command=$2"
  done
}

# state: prints the state of the queued resource, such as ACTIVE; MISSING if there is
# none.
state() {
  local found
  if found=$(cloud compute tpus queued-resources describe "$name" \
    '--format=value(state.state)' 2>&1); then
    echo "$found"
  elif grep -q NOT_FOUND <<<"$found"; then
    echo MISSING
  else
    echo "$found" >&2
    return 1
  fi
}
