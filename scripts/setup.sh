#!/usr/bin/env bash
# Make .venv and install the given requirements files and this project into it.
#
#     scripts/setup.sh requirements.txt [requirements-dev.txt]
#
# PYTHON=/path/to/python3.12 chooses the interpreter, TORCH=cpu or TORCH=pypi the build of PyTorch; by default it is the
# one without CUDA where this Linux has no NVIDIA driver (4 GB less), else the one of PyPI. Only Python's venv module is needed from the system; where it
# is missing it is installed with apt-get if that is allowed, else the message says what to install.
set -euo pipefail
cd "$(dirname "$0")/.."

# Succeeds for an interpreter that can make an environment for us. Debian ships venv without ensurepip.
usable() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.13}; do
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
            echo "setup: needs Python 3.11, 3.12 or 3.13 with its venv module (on Debian or Ubuntu:" \
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

export PIP_DISABLE_PIP_VERSION_CHECK=1
# Not compiled, because most of what lies in these packages is never imported (a tenth of the size); what the
# server imports is compiled by the last line.
pip=(.venv/bin/python -m pip install --quiet --progress-bar off --no-compile)
has_torch='import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'
if [[ $(uname -sm) == "Linux x86_64" && ${TORCH:-} != pypi ]] && ! .venv/bin/python -c "$has_torch"; then
    if [[ ${TORCH:-} == cpu ]] || ! command -v nvidia-smi >/dev/null; then
        # A wheel in a folder that pip was told of, or PyTorch's own index; PyPI's below where neither is at hand.
        alone=("${pip[@]}" --no-deps -c constraints.txt torch)
        "${alone[@]}" --no-index 2>/dev/null ||
            "${alone[@]}" --index-url https://download.pytorch.org/whl/cpu --retries 0 --timeout 15 2>/dev/null ||
            echo "setup: PyTorch's build without CUDA is not within reach; PyPI's takes 4 GB more." >&2
    fi
fi
"${pip[@]}" -c constraints.txt "${requirements[@]}"
"${pip[@]}" --no-deps --editable .
# An eighth of the size: PyTorch's own test programs, and headers and tools for building extensions to it.
.venv/bin/python - <<'EOF'
import importlib.util, pathlib, shutil
torch = pathlib.Path(importlib.util.find_spec("torch").origin).parent
for part in ("test", "include"):
    shutil.rmtree(torch / part, ignore_errors=True)
for part in (torch / "bin").glob("*"):
    if part.is_file() and part.name != "torch_shm_manager":
        part.unlink()
EOF
imports="from dualclickmed.server.starting import import_monai, import_web; import_monai(); import_web()
import dualclickmed.infers.segmenter, monailabel.main"
if ! problem=$(env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -c "$imports" 2>&1 >/dev/null); then
    echo "setup: what was installed can't be imported; remove .venv and try again, or report this:" >&2
    echo "$problem" >&2
    exit 1
fi
