#!/usr/bin/env bash
# Runs on a machine of a TPU, where install.sh has put the sources: makes the environment
# in ~/venv and, if a bucket is named, mounts it as ~/bucket.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [ "${1:-}" = --help ]; then
  echo "usage: bash launch/tpu/on_machine.sh [BUCKET]    (called by install.sh)"
  exit 0
fi

# shellcheck source=launch/machine.sh
source launch/machine.sh
machine_environment train,tpu

bucket=${1:-}
if [ -n "$bucket" ] && ! mountpoint -q "$HOME/bucket"; then
  if ! command -v gcsfuse >/dev/null; then
    # https://cloud.google.com/storage/docs/cloud-storage-fuse/install
    key=/usr/share/keyrings/cloud.google.asc
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg |
      sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt" \
      "gcsfuse-$(lsb_release -cs) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    apt_get update
    apt_get install -y gcsfuse
  fi
  mkdir -p "$HOME/bucket"
  gcsfuse --implicit-dirs "$bucket" "$HOME/bucket"
fi
