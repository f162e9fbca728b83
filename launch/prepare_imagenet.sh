#!/usr/bin/env bash
# Builds ImageNet on a machine of the cloud that is there for that alone, in a bucket.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/cloud.sh
source "$here/cloud.sh"

archives='' out='' resize='' machine=n2-standard-16 disk=600 poll=60
usage() {
  cat <<'END'
usage: bash launch/prepare_imagenet.sh --archives gs://A --out gs://B --name N --zone Z
       [OPTION ...]

Starts a machine without accelerator, copies ILSVRC2012_img_train.tar and
ILSVRC2012_img_val.tar there from gs://A, builds the dataset with prepare_data, copies
it to gs://B, and deletes the machine. Give --config.data.data_dir=gs://B to train. It
takes hours, and goes on if this command is ended; called again it waits for the machine
that is at work, or goes on where it failed: then the machine is kept.

  --archives G   folder of a bucket with both archives
  --out G        folder of a bucket for the dataset
  --resize K     also a copy with a short side of at most K pixels
  --machine M    its type (n2-standard-16)
  --disk GB      its disk (600: archives, dataset, a copy)
  --poll S       seconds between two looks (60)
END
  common_options
}

own_option() {
  case $1 in
    --archives) archives=$2 ;;
    --out) out=$2 ;;
    --resize) resize=$2 ;;
    --machine) machine=$2 ;;
    --disk) disk=$2 ;;
    --poll) poll=$2 ;;
    *) return 1 ;;
  esac
}

parse "$@"
need archives out name zone
for place in "$archives" "$out"; do
  [[ $place == gs://* ]] || fail "$place: write gs://BUCKET/FOLDER"
done
[[ ${resize:-1} =~ ^[1-9][0-9]*$ ]] || fail "--resize $resize: write a number of pixels"

on_machine() {
  cloud compute ssh "$name" "--command=$1"
}

start() {
  if ! cloud compute instances describe "$name" '--format=value(status)' \
    >/dev/null 2>&1 || [ -n "$dry_run" ]; then
    echo "== starting $machine as $name"
    cloud compute instances create "$name" "--machine-type=$machine" \
      "--boot-disk-size=${disk}GB" --boot-disk-type=pd-balanced \
      --image-family=debian-12 --image-project=debian-cloud --scopes=cloud-platform
    # It takes a while until it can be reached.
    for _ in 1 2 3 4 5 6 7 8 9 10; do
      if on_machine true; then break; fi
      sleep 10
    done
  fi
  pack
  cloud compute scp "$packed" "$name:vt_flax.tar.gz"
  printf -v words '%q ' "$archives" "$out" "$resize"
  on_machine "$unpack && $(service "bash launch/imagenet_on_machine.sh ${words% }")"
}

answer=
if [ -z "$dry_run" ]; then answer=$(on_machine "$ask" 2>/dev/null) || true; fi
[[ $answer == running* ]] || start
if [ -n "$dry_run" ]; then
  on_machine "$ask"
  cloud compute instances delete "$name"
  exit 0
fi
echo "== at work; to follow it: gcloud compute ssh $name --zone=$zone --command='tail -F run.log'"
while true; do
  answer=$(on_machine "$ask" 2>/dev/null) || answer=
  case $answer in
    *exited*) break ;;
    *failed* | *dead*)
      on_machine 'tail -n 5 run.log' >&2 || true
      fail "it failed ($answer); the machine is kept: mend it, and call this again" 1
      ;;
  esac
  sleep "$poll"
done
cloud compute instances delete "$name"
echo "== done: --config.data.data_dir=$out"
