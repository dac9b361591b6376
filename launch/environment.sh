# shellcheck shell=bash
# Makes .venv with this package installed, once for each set of extras; sourced by the scripts beside it.
#   source launch/environment.sh embedded
# PYTHON names the interpreter (3.11 or newer; PYTHON=uv has uv bring Python 3.12, for machines with an older one);
# MEDKOR_VENV another place for the environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras=$1
python=${PYTHON:-python3}
venv=${MEDKOR_VENV:-.venv}
if [ "$python" = uv ]; then
    python=$venv/bin/python
    if [ ! -x "$python" ]; then
        command -v uv >/dev/null || PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
        PATH="$HOME/.local/bin:$PATH" uv venv --quiet --seed --python 3.12 "$venv"
    fi
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "$python is $("$python" --version); medkor needs Python 3.11 or newer: set PYTHON=python3.12, or PYTHON=uv" >&2
    exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
wanted="$extras $(sha256sum pyproject.toml)"
if [ "$(cat "$venv/installed-$extras" 2>/dev/null)" != "$wanted" ]; then
    echo "installing medkor-jax[$extras] into $venv ..."
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[$extras]"
    echo "$wanted" >"$venv/installed-$extras"
fi
PATH="$(cd "$venv" && pwd)/bin:$PATH"
export PATH
