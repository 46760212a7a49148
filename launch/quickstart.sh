#!/usr/bin/env bash
# From nothing but Python 3.11+ to a trained model: installs mmjax, trains a small CLIP on real scanned digits, evaluates it on
# digits and captions it has never seen, and prints where the report is.
#
#   bash launch/quickstart.sh [WORKDIR] [key=value ...]      WORKDIR defaults to runs/digits; the rest are config overrides
#
# Given again it continues what was interrupted; a finished run is only evaluated. PYTHON=... chooses the interpreter for a new environment.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

case ${1:-} in
  -h | --help)
    usage
    exit
    ;;
  -* | *=*) die "the first argument is the workdir, got '$1'; usage: bash launch/quickstart.sh [WORKDIR] [key=value ...]" ;;
esac
workdir=${1:-runs/digits}
# A relative WORKDIR is meant from where the command was given.
if [ $# -gt 0 ]; then
  [ "$PWD" = "$root" ] || [ "${workdir:0:1}" = / ] || workdir=$PWD/$workdir
  shift
fi
cd "$root"

make_env .venv tensorboard
mmjax=$root/.venv/bin/mmjax
say "training in $workdir"
"$mmjax" train --config configs/clip/digits.py --workdir "$workdir" "$@"
say "evaluating on the test split"
"$mmjax" eval --workdir "$workdir" --split test --report
