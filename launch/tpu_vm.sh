#!/usr/bin/env bash
# Run one command on every worker of a Cloud TPU VM.
#
#   bash launch/tpu_vm.sh [options] NAME ZONE COMMAND...
#   bash launch/tpu_vm.sh my-pod us-central2-b mmjax train --distributed --config configs/clip/vit_b32.py --workdir /mnt/runs/b32
#
# Copies this checkout (all files that git does not ignore) to every worker, builds or reuses a virtual environment there with
# the `tpu` extra, and runs COMMAND in the copy, with the environment active, on all workers at once.
#
#   --project P       Google Cloud project, where it is not gcloud's default
#   --dir D           folder on the workers, absolute or under the home directory; default mmjax
#   --prepare CMD     shell line run on every worker before the installation: to mount a bucket, or where the image's Python is
#                     older than 3.11, as on Ubuntu 22.04:
#                     --prepare 'sudo add-apt-repository -y ppa:deadsnakes/ppa && sudo apt-get install -y python3.12-venv'
#   --only_run        no copy, no installation: only COMMAND
#   --internal_ip     reach the workers by their internal addresses
#   --dry_run         print the commands, run nothing
#
# The workdir must be a folder that all workers see (NFS, a mounted bucket). The run ends with this connection: start it in tmux
# for long ones; the same line again continues it. To stop and save: --only_run NAME ZONE pkill -TERM -f 'bin/[m]mjax train'
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

project="" folder=mmjax prepare=true only_run="" dry_run="" network=()
while [ $# -gt 0 ]; do
  case $1 in
    --project | --dir | --prepare)
      [ $# -ge 2 ] || die "$1 needs a value"
      case $1 in --project) project=$2 ;; --dir) folder=$2 ;; *) prepare=$2 ;; esac
      shift
      ;;
    --only_run) only_run=1 ;;
    --internal_ip) network=(--internal-ip) ;;
    --dry_run) dry_run=1 ;;
    -h | --help)
      usage
      exit
      ;;
    -*) die "unknown option '$1'; bash launch/tpu_vm.sh --help lists them" ;;
    *) break ;;
  esac
  shift
done
[ $# -ge 3 ] || die "expected NAME ZONE COMMAND..., got $# of them; bash launch/tpu_vm.sh --help shows how"
name=$1 zone=$2
shift 2
case " $* " in
  *" --distributed "*) ;;
  " mmjax train "*) die "without --distributed every worker would train a run of its own in the same workdir: mmjax train --distributed ..." ;;
esac
[ -n "$dry_run" ] || command -v gcloud >/dev/null || die "gcloud is not on the PATH; install the Google Cloud CLI and log in"

target=(--zone="$zone" --worker=all ${project:+--project="$project"} ${network[@]+"${network[@]}"})

run() {
  printf '+'
  printf ' %q' "$@"
  echo
  [ -n "$dry_run" ] || "$@"
}
on_workers() { run gcloud compute tpus tpu-vm ssh "$name" "${target[@]}" --command="$1"; }

# The files as they stand, committed or not. The history stays here: .git can hold credentials.
pack() {
  git -C "$root" rev-parse --is-inside-work-tree >/dev/null 2>&1 || die "$root is no git checkout, so which files to copy is unknown"
  (cd "$root" && git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
    [ ! -e "$file" ] || printf '%s\0' "$file"
  done | tar --null -T - -czf "$1")
}

printf -v into %q "$folder"
if [ -z "$only_run" ]; then
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  archive=$scratch/mmjax-code.tgz
  pack "$archive"
  say "copying $(du -k "$archive" | cut -f1) KiB of code to all workers of $name"
  run gcloud compute tpus tpu-vm scp "$archive" "$name:" "${target[@]}"
  # What the last copy brought goes first, so that a file deleted here is not imported there; anything else in the folder stays.
  on_workers "set -e; mkdir -p $into; cd $into; [ ! -f code.tgz ] || tar -tzf code.tgz | tr '\\n' '\\0' | xargs -0 rm -f
    mv ~/mmjax-code.tgz code.tgz; tar -xzf code.tgz; $prepare; bash launch/env.sh .venv tpu,tensorboard"
fi
printf -v command ' %q' "$@"
on_workers "cd $into && . .venv/bin/activate && exec$command"
