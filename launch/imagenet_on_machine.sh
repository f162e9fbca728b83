#!/usr/bin/env bash
# Runs on the machine that prepare_imagenet.sh has started: archives from a bucket,
# dataset to a bucket. Called again, it continues.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ $# -lt 2 ] || [ "$1" = --help ]; then
  echo "usage: bash launch/imagenet_on_machine.sh gs://ARCHIVES gs://OUT [SHORT_SIDE]"
  echo "(called by prepare_imagenet.sh)"
  exit 0
fi
archives=${1%/} out=${2%/} resize=${3:-}

# shellcheck source=launch/machine.sh
source launch/machine.sh
machine_environment train

mkdir -p ~/archives ~/data
for file in ILSVRC2012_img_train.tar ILSVRC2012_img_val.tar; do
  [ -f ~/archives/"$file" ] || [ -d ~/data/imagenet2012 ] ||
    gcloud storage cp "$archives/$file" ~/archives/
done
# What a run that was killed has left, which would fill the disk.
rm -rf ~/data/*/incomplete.*
prepare=("$VENV/bin/python" -m vt_flax prepare_data imagenet2012 --data_dir ~/data)
"${prepare[@]}" --manual_dir ~/archives
[ -z "$resize" ] || "${prepare[@]}" --resize "$resize"
gcloud storage rsync --recursive ~/data "$out"
