# shellcheck shell=bash
# One virtual environment with this checkout installed in it. Sourced by the scripts beside it, or run by hand:
#
#   bash launch/env.sh VENV EXTRAS       for example: bash launch/env.sh .venv gpu,tensorboard
#
# VENV is a folder relative to the checkout, EXTRAS a comma-separated list of setup.py's extras. PYTHON=... chooses the
# interpreter it is made with. Calling it again does nothing, and needs no network, until setup.py or pyproject.toml change.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { echo "== $*"; }

die() {
  echo "mmjax: error: $*" >&2
  exit 1
}

# Prints the comment that opens the script being run.
usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; }

# Prints the interpreter to build on. What `python3` means here and now is the user's choice, so it comes first.
find_python() {
  local candidate candidates=(python3 python3.13 python3.12 python3.11 python3.14) bare=""
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    # Running it is the only sure test: a version manager's shim can be on the PATH and lead nowhere.
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
    if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
    bare=${bare:-$candidate}
  done
  if [ -n "$bare" ]; then
    local version
    version=$("$bare" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    die "$bare cannot make virtual environments (no ensurepip); on Debian and Ubuntu: sudo apt-get install python$version-venv"
  fi
  [ -z "${PYTHON:-}" ] || die "PYTHON=$PYTHON does not run, or is older than Python 3.11"
  die "no Python 3.11 or newer among: ${candidates[*]}; install one, or name it with PYTHON=/path/to/python3"
}

# On a CPU, XLA takes the step's workspace from malloc every step and gives it back. Left alone, glibc returns it to the kernel each time, and
# the step pays for hundreds of thousands of page faults, up to a third of its time. One arena that is never trimmed keeps it, on huge pages;
# the process then holds as much memory as it ever needed at once. glibc reads this when a process starts, so it cannot be set from Python.
keep=glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.mmap_threshold=68719476736:glibc.malloc.trim_threshold=68719476736
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1:$keep}

# make_env VENV EXTRAS
make_env() {
  [ $# -eq 2 ] || die "usage: bash launch/env.sh VENV EXTRAS, for example .venv gpu,tensorboard"
  local venv=$root/$1 extras=$2 python want
  local stamp=$venv/mmjax-installed
  want="$(cat "$root/setup.py" "$root/pyproject.toml" | cksum) $extras $root"
  if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
    say "environment $1 is up to date"
    return
  fi
  if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    python=$(find_python) || exit 1
    say "creating $1 with $python ($("$python" --version))"
    "$python" -m venv --clear "$venv" || die "$python could not create $venv; its message is above"
  fi
  say "installing .[$extras] into $1, a minute or two the first time"
  rm -f "$stamp" # an interrupted installation must not look finished
  (cd "$root" && "$venv/bin/python" -m pip install --disable-pip-version-check --editable ".[$extras]") || die "pip could not install .[$extras] into $1; its message is above"
  echo "$want" >"$stamp"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  set -euo pipefail
  make_env "$@"
fi
