#!/usr/bin/env bash
# Puts this version of the sources on all machines of a TPU, and installs them.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/cloud.sh
source "$here/../cloud.sh"

bucket=${POD_BUCKET:-}
usage() {
  cat <<'END'
usage: bash launch/tpu/install.sh --name N --zone Z [--bucket B] [OPTION ...]

Copies the sources of this folder, as they are, to vt_flax on every machine of a TPU,
makes the environment there and installs them with the TPU's libraries. With --bucket
the bucket is mounted there too, by gcsfuse, as the folder bucket: the workdir that all
machines have to share. Take one with a hierarchical namespace, in which a folder is
renamed at once: checkpoints rely on that.

  --bucket B     to mount, without gs:// ($POD_BUCKET)
END
  common_options
}

own_option() {
  case $1 in
    --bucket) bucket=$2 ;;
    *) return 1 ;;
  esac
}

parse "$@"
need name zone
case $bucket in
  *[!a-z0-9._-]*) fail "--bucket $bucket: write the bucket's name alone" ;;
esac

pack
for node in $(nodes); do
  cloud compute tpus tpu-vm scp "$packed" "$node:vt_flax.tar.gz" --worker=all
done
on_workers all "$unpack && bash vt_flax/launch/tpu/on_machine.sh $bucket"
