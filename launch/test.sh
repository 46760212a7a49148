#!/usr/bin/env bash
# Everything that must hold before a commit, from nothing but Python 3.11+: lint, format, tests. Exits with the first failure's status.
#
#   bash launch/test.sh                      the quick tests
#   bash launch/test.sh --slow               the slow ones too
#   bash launch/test.sh tests/core -x        any arguments of pytest
#
# TEST_WORKERS=N runs the tests in N processes (default 2; 0 for one, without pytest-xdist). Compiled one-device programs are kept
# in .cache/jax, or where JAX_COMPILATION_CACHE_DIR says. PYTHON=... chooses the interpreter for a new environment.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"

make_env .venv-test test
export PATH="$root/.venv-test/bin:$PATH"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$root/.cache/jax}"
workers=${TEST_WORKERS:-2}

say "ruff check"
python -m ruff check .
say "ruff format --check"
python -m ruff format --check .
say "pytest -n $workers, compiled programs in $JAX_COMPILATION_CACHE_DIR"
exec python -m pytest -n "$workers" "$@"
