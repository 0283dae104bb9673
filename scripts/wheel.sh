#!/usr/bin/env bash
# Build the package's wheel, with the page's NiiVue in it.
#
#     scripts/wheel.sh [FOLDER]        (default: dist)
#
# Only files that belong to it are taken: a copy of what git knows is built, so that nothing old comes along.
set -euo pipefail
cd "$(dirname "$0")/.."

out=$(realpath -m "${1:-dist}")
page=apps/dualclickmed/lib/viewers/page
scripts/page.sh
if [[ ! -e $page/niivue.js ]]; then
    echo "wheel: without NiiVue the page would show no image; npm is needed to fetch it." >&2
    exit 1
fi
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z | xargs -0 cp --parents -t "$copy"
cp "$page/niivue.js" "$copy/$page/"
DUALCLICKMED_REPOSITORY=$(git config --get remote.origin.url || true) PIP_DISABLE_PIP_VERSION_CHECK=1 \
    .venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir "$out" "$copy"
echo "$out/$(ls -t "$out" | grep '^dualclickmed-.*\.whl$' | head -1)"
