#!/usr/bin/env bash
# What the browser tests need from the system: Chromium, the libraries of Qt, and Orthanc with DICOMweb. Installs them on
# Debian and Ubuntu where that is allowed, else says what to install. The tests start their own Orthanc, so Debian's service
# is not started. With the argument `page` only Chromium is wanted, with `archive` only Orthanc.
set -euo pipefail

missing=()
[[ ${1:-} == archive ]] || command -v chromium >/dev/null || command -v chromium-browser >/dev/null || [[ -n ${CHROMIUM:-} ]] || missing+=(chromium)
if [[ -z ${1:-} ]]; then
    libraries=$(PATH=$PATH:/sbin ldconfig -p)
    for library in EGL:libegl1 GL:libgl1 xkbcommon:libxkbcommon0; do
        grep -q "lib${library%:*}\.so" <<<"$libraries" || missing+=("${library#*:}")
    done
fi
if [[ ${1:-} != page ]]; then
    PATH=$PATH:/usr/sbin command -v Orthanc >/dev/null || missing+=(orthanc)
    [[ -e /usr/share/orthanc/plugins/libOrthancDicomWeb.so ]] || missing+=(orthanc-dicomweb)
fi
if ((${#missing[@]} == 0)); then
    exit
fi
if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "needs ${missing[*]} (on Debian or Ubuntu: sudo apt-get install ${missing[*]})." >&2
    exit 1
fi
echo "Installing ${missing[*]}"
apt-get update -qq
RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
