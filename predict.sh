#!/bin/sh
# The challenge's entry point: answer every case file of one folder in another.
#
#     sh predict.sh [INPUTS] [OUTPUTS] [further options of 'main.py predict']
set -eu
cd "$(dirname "$0")"
inputs=${1:-inputs}
outputs=${2:-outputs}
if [ $# -ge 2 ]; then shift 2; else shift $#; fi
python=.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" main.py predict --input "$inputs" --output "$outputs" "$@"
