#!/usr/bin/env bash
# The tests with the oldest versions that pyproject.toml allows.
#
#   tests/lower_bounds.sh VENV [arguments of pytest]
#
# Makes the virtual environment VENV anew, with Python 3.11 and with the package
# and every dependency of its own and of its tests at the lower bound, and runs
# the tests in it. What those need in turn is as new as they allow; that old
# packages use what newer ones deprecate is no failure. Needs uv (`pip install uv`).
set -euo pipefail

venv=$(realpath -m "${1:?"usage: $0 VENV [arguments of pytest]"}")
shift
cd "$(dirname "$0")/.."

uv venv --clear --python=3.11 "$venv"
export VIRTUAL_ENV=$venv
uv pip install --resolution=lowest-direct -e '.[tests]'
uv pip check
exec "$venv/bin/python" -m pytest -W ignore::DeprecationWarning "$@"
