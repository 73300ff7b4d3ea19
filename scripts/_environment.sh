# Sourced by demo and test: a virtual environment of our own, made once and brought up to date each time.
# Usage: environment NAME REQUIREMENT…   (leaves $python set)
environment() {
    local name=$1
    shift
    local folder="${TOOLKIT_VENVS:-$root}/.venv-$name"
    if [ ! -x "$folder/bin/python" ]; then
        "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            { echo "Python 3.11 or newer is needed; set PYTHON to one." >&2; exit 3; }
        "${PYTHON:-python3}" -m venv "$folder"
    fi
    python="$folder/bin/python"
    echo "Installing into $folder (the first time takes a few minutes) …" >&2
    "$python" -m pip install --quiet --disable-pip-version-check --constraint "$root/constraints.txt" "$@"
}
