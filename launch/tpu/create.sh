#!/usr/bin/env bash
# Asks for a TPU and waits until it is there.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/cloud.sh
source "$here/../cloud.sh"

type=${POD_TYPE:-} version='' spot='' wait_seconds=86400 poll=30
usage() {
  cat <<'END'
usage: bash launch/tpu/create.sh --name N --zone Z --type T [OPTION ...]

Asks Google Cloud for a TPU as a queued resource, and waits until its machines are
there. If there is one of this name already, it waits for that one.

  --type T       such as v5litepod-16, v5p-32, v4-32 ($POD_TYPE)
  --version V    the machines' software (what Google recommends for the type and JAX)
  --spot         cheaper, and taken away at any time: see resubmit.sh
  --wait S       seconds to wait for it at most (86400)
  --poll S       seconds between two looks (30)
END
  common_options
  echo
  echo "Exit status 1: it could not be had; 2: a wrong option."
}

own_option() {
  case $1 in
    --type) type=$2 ;;
    --version) version=$2 ;;
    --spot) spot=yes words=1 ;;
    --wait) wait_seconds=$2 ;;
    --poll) poll=$2 ;;
    *) return 1 ;;
  esac
}

parse "$@"
need name zone type
# https://cloud.google.com/tpu/docs/runtimes, which also says that the Cloud TPU API, which
# makes queued resources, is not supported on TPU7x and later.
[ -n "$version" ] || case $type in
  v5litepod-*) version=v2-alpha-tpuv5-lite ;;
  v5p-*) version=v2-alpha-tpuv5 ;;
  v6e-*) version=v2-alpha-tpuv6e ;;
  v[234]-*) version=tpu-ubuntu2204-base ;;
  tpu7* | v7* | ironwood*)
    fail "--type $type: the Cloud TPU API does not create Ironwood; see 'Ironwood' in\
 docs/pods.md, or give --version if your project has access"
    ;;
  *) fail "--type $type: not known here, so name its software by --version" ;;
esac

request=(compute tpus queued-resources create "$name" "--accelerator-type=$type"
  "--runtime-version=$version")
if [ "$slices" = 1 ]; then
  request+=("--node-id=$name")
else
  request+=("--node-count=$slices" "--node-prefix=$name")
fi
[ -z "$spot" ] || request+=(--spot)
if [ -n "$dry_run" ]; then
  cloud "${request[@]}"
  state
  exit 0
fi

now=$(state) || fail "gcloud cannot tell whether $name is there" 1
if [ "$now" = MISSING ]; then
  echo "== asking for $type as $name"
  cloud "${request[@]}" || fail "gcloud did not take the request for $name" 1
fi
limit=$((SECONDS + wait_seconds))
last=
while true; do
  # A look may fail for a while without a reason.
  now=$(state) || now=$last
  [ "$now" = "$last" ] || echo "== $name is $now"
  last=$now
  case $now in
    ACTIVE) break ;;
    FAILED | SUSPENDED | SUSPENDING | DELETING)
      fail "$name is $now: delete it (launch/tpu/delete.sh) and create it again" 1
      ;;
  esac
  [ "$SECONDS" -lt "$limit" ] || fail "$name is not there after $wait_seconds s" 1
  sleep "$poll"
done
