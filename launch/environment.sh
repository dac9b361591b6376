# Makes .venv with this package installed, once for each set of extras; sourced by the scripts beside it.
#   source launch/environment.sh embedded
# PYTHON names the interpreter (3.11 or newer); MEDKOR_VENV another place for the environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras=$1
python=${PYTHON:-python3}
venv=${MEDKOR_VENV:-.venv}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "$python is $("$python" --version); medkor needs Python 3.11 or newer: set PYTHON=python3.12" >&2
    exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
wanted="$extras $(sha256sum pyproject.toml)"
if [ "$(cat "$venv/installed-$extras" 2>/dev/null)" != "$wanted" ]; then
    echo "installing medkor-jax[$extras] into $venv ..."
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[$extras]"
    echo "$wanted" >"$venv/installed-$extras"
fi
export PATH="$PWD/$venv/bin:$PATH"
