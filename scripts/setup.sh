#!/usr/bin/env bash
# Make .venv and install the given requirements files and this project into it.
#
#     scripts/setup.sh requirements.txt [requirements-dev.txt]
#
# PYTHON=/path/to/python3.12 chooses the interpreter. Only Python's venv module is needed from the system; where it
# is missing it is installed with apt-get if that is allowed, else the message says what to install.
set -euo pipefail
cd "$(dirname "$0")/.."

# Succeeds for an interpreter that can make an environment for us. Debian ships venv without ensurepip.
usable() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.10}; do
        if usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

if [[ ! -x .venv/bin/python ]]; then
    if ! python=$(find_python); then
        if [[ $(id -u) == 0 && -z ${PYTHON:-} ]] && command -v apt-get >/dev/null; then
            apt-get update -qq
            apt-get install -y -qq --no-install-recommends python3 python3-venv
        fi
        if ! python=$(find_python); then
            echo "setup: needs Python 3.10, 3.11 or 3.12 with its venv module (on Debian or Ubuntu:" \
                "apt-get install python3 python3-venv); PYTHON=/path/to/python chooses another one." >&2
            exit 1
        fi
    fi
    "$python" -m venv .venv
fi

requirements=()
for file in "$@"; do
    requirements+=(-r "$file")
done

# Through the environment, not as an option, so that isolated builds of source packages (sam2) are bound as well;
# newer versions of pip read the second variable there. Relative, because pip splits the variables at spaces.
export PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1
# sam2's optional CUDA kernel is not used and would be compiled wherever a CUDA compiler is found.
export SAM2_BUILD_CUDA=0
.venv/bin/python -m pip install --quiet --progress-bar off "${requirements[@]}"
.venv/bin/python -m pip install --quiet --no-deps --editable .
