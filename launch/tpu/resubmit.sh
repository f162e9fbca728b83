#!/usr/bin/env bash
# Trains until it is done, on TPUs that may be taken away.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/cloud.sh
source "$here/../cloud.sh"

poll=60 attempts=100 keep='' bucket=${POD_BUCKET:-} type=${POD_TYPE:-} create=()
usage() {
  cat <<'END'
usage: bash launch/tpu/resubmit.sh --name N --zone Z --type T [OPTION ...] -- TRAIN ARGUMENTS

Creates a TPU, installs, trains, and looks after it until the training is done: a TPU
that was taken away is deleted and asked for again, and the same command goes on where
the workdir stopped; so does one of which a process was ended by a signal. Then the TPU
is deleted. Bad input (status 2) and a training that diverged (3) end it, for the next
attempt would end likewise; so do three other errors in a row.

  --type T, --version V, --spot, --wait S: see create.sh
  --bucket B     see install.sh
  --poll S       seconds between two looks (60)
  --attempts K   how often to start at most (100)
  --keep         does not delete the TPU at the end
END
  common_options
  echo
  echo "Exit status: the training's; 1 if it could not be brought to its end."
}

own_option() {
  case $1 in
    --type) type=$2 ;;
    --version | --wait) create+=("$1" "$2") ;;
    --spot) create+=("$1") words=1 ;;
    --bucket) bucket=$2 ;;
    --poll) poll=$2 ;;
    --attempts) attempts=$2 ;;
    --keep) keep=yes words=1 ;;
    *) return 1 ;;
  esac
}

parse "$@"
need name zone type
need_training

where=(--name "$name" --zone "$zone" --slices "$slices")
[ -z "$project" ] || where+=(--project "$project")
[ -z "$dry_run" ] || where+=(--dry-run)
install=("${where[@]}")
[ -z "$bucket" ] || install+=(--bucket "$bucket")

create=("$here/create.sh" "${where[@]}" --type "$type" "${create[@]}" --poll "$poll")
install=("$here/install.sh" "${install[@]}")
run=("$here/run.sh" "${where[@]}" -- "${rest[@]}")
# What these refuse as bad input they would refuse each time: nothing is begun then.
bash "${create[@]}" --dry-run >/dev/null
bash "${install[@]}" --dry-run >/dev/null
bash "$here/run.sh" "${where[@]}" --dry-run -- "${rest[@]}" >/dev/null

# attempt: starts the training and waits for its end. Sets `outcome` to its status, or to
# `lost` where the TPU is gone, or `dead` where a machine was started anew.
attempt() {
  local now answer statuses own
  outcome=lost
  bash "${create[@]}" || return 0
  bash "${install[@]}" || return 0
  bash "${run[@]}" || return 0
  if [ -n "$dry_run" ]; then
    on_workers all "$ask"
    outcome=0
    return
  fi
  echo "== training; to follow it: bash launch/tpu/logs.sh ${where[*]}"
  while true; do
    sleep "$poll"
    # A look may fail for a while without a reason.
    now=$(state) || continue
    if [ "$now" != ACTIVE ]; then
      echo "== $name is $now"
      return
    fi
    answer=$(on_workers all "$ask" 2>/dev/null) || continue
    case $answer in
      *running* | *start* | *stop*) continue ;;
      *dead*) outcome=dead; return ;;
    esac
    # A process that failed by itself has a status of its own; the others were stopped
    # (4), lost another one (5), or were ended by a signal: SIGABRT, as JAX aborts,
    # SIGKILL or SIGTERM, which systemd gives by its number and a shell 128 higher.
    statuses=$(grep -oE '[0-9]+' <<<"$answer" | sed -E 's/^(6|9|15|134|137|143)$/5/' |
      sort -n)
    own=$(grep -vxE '0|4|5' <<<"$statuses" | head -1) || own=
    outcome=${own:-$(tail -1 <<<"$statuses")}
    return
  done
}

errors=0
for ((i = 1; i <= attempts; i++)); do
  echo "== attempt $i of $attempts"
  attempt
  case $outcome in
    0 | 2 | 3) break ;;
    lost)
      echo "== $name was taken away, or did not come: again"
      bash "$here/delete.sh" "${where[@]}" || true
      sleep "$poll"
      ;;
    dead | 4 | 5) echo "== stopped, or a process was lost ($outcome): again" ;;
    *)
      errors=$((errors + 1))
      echo "== an error (status $outcome), $errors in a row"
      [ "$errors" -lt 3 ] || break
      continue
      ;;
  esac
  errors=0
done
case $outcome in
  0) echo "== done" ;;
  lost | dead | 4 | 5) fail "not done after $attempts attempts; $name is kept" 1 ;;
  *)
    echo "== ended with status $outcome; what it said:" >&2
    bash "$here/logs.sh" "${where[@]}" --worker all --lines 5 --no-follow >&2 || true
    ;;
esac
[ -n "$keep" ] || bash "$here/delete.sh" "${where[@]}"
exit "$outcome"
