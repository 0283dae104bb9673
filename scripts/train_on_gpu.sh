#!/usr/bin/env bash
# Train experts from a machine that has Python and torch, in one call of MINUTES; the next call goes on.
#
#     [MINUTES=9] [CALLS=2] [RECIPES="global-compact local-compact"] [OUT=runs/gpu/out] scripts/train_on_gpu.sh \
#         [options of 'train' for every recipe: --data PATH, --start NAME, --set NAME=VALUE, ...]
#
# All recipes train at once, each with its part of the processor cores for making samples. Their schedules end
# after CALLS calls. Checkpoints stay in RUNS (runs/gpu); OUT receives the weights so far with their cards and
# the logs, each below 16 MB. The last call's weights have cooled down and are measured in their cards.
#
# Neither MONAI Label nor a GPU is needed (DEVICE=cpu). Packages that are missing are installed into RUNS: from
# the wheels in WHEELS where that is given, else by pip at the versions of constraints.txt. PYTHON=/path/to/python
# chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

minutes=${MINUTES:-9} calls=${CALLS:-2} python=${PYTHON:-python3}
read -r -a recipes <<<"${RECIPES:-global-compact local-compact}"
runs=${RUNS:-runs/gpu} out=${OUT:-runs/gpu/out} most=$((16 * 1000 * 1000))
mkdir -p "$runs" "$out"
export PYTHONPATH="$runs/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

# module:package of what a training imports beyond torch.
needed="numpy:numpy scipy:scipy monai:monai nibabel:nibabel cc3d:connected-components-3d edt:edt safetensors:safetensors
    SimpleITK:SimpleITK nrrd:pynrrd pydicom:pydicom skimage:scikit-image matplotlib:matplotlib typer:typer rich:rich
    tqdm:tqdm filelock:filelock psutil:psutil requests:requests packaging:packaging"
read -r -a missing <<<"$("$python" - $needed <<'PYTHON'
import importlib.util
import sys

pairs = (pair.split(":") for pair in sys.argv[1:])
print(*(package for module, package in pairs if importlib.util.find_spec(module) is None))
PYTHON
)"
if ((${#missing[@]})); then
    echo "Installing ${missing[*]}"
    if [[ -n ${WHEELS:-} ]]; then
        "$python" -m pip install --quiet --no-index --no-deps --find-links "$WHEELS" --target "$runs/site" "${missing[@]}"
    else
        grep -v -i '^torch' constraints.txt >"$runs/constraints.txt"
        # Without what they need in turn: that is in the list, and torch is there.
        "$python" -m pip install --quiet --no-deps -c "$runs/constraints.txt" --target "$runs/site" "${missing[@]}"
    fi
fi

device=${DEVICE:-$("$python" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')}
workers=$((($(nproc) - ${#recipes[@]}) / ${#recipes[@]}))
whole=$("$python" -c "print($minutes * $calls)")
seconds=$("$python" -c "print(round(60 * $minutes))")
# Where several share a processor, more threads than cores only get in each other's way.
threads=$((($(nproc) + ${#recipes[@]} - 1) / ${#recipes[@]}))

processes=()
for recipe in "${recipes[@]}"; do
    name=$(basename "$recipe" .toml)
    file=$recipe
    [[ $file == *.toml ]] || file="apps/dualclickmed/lib/training/recipes/$recipe.toml"
    kind=$(sed -n 's/^kind = "\(.*\)"/\1/p' "$file")
    # SIGTERM saves and exports; the whole time is reached in the last call, which ends by itself.
    timeout --signal=TERM --kill-after=120 "$seconds" "$python" main.py train "$kind" --recipe "$recipe" \
        --out "$runs/$name" --minutes "$whole" --device "$device" --workers "$((workers > 0 ? workers : 0))" \
        --threads "$threads" --no-tensorboard "$@" >>"$runs/$name.txt" 2>&1 &
    processes+=($!)
done
failed=0
for at in "${!recipes[@]}"; do
    name=$(basename "${recipes[$at]}" .toml)
    code=0
    wait "${processes[$at]}" || code=$?
    # 124: stopped by its time.
    if ((code != 0 && code != 124)); then
        echo "The training of $name failed ($code); the end of its messages:" >&2
        tail -n 20 "$runs/$name.txt" >&2
        failed=1
        continue
    fi
    for file in "$runs/$name"/*.safetensors "$runs/$name"/*.json "$runs/$name/log.csv"; do
        [[ -f $file && $(basename "$file") != objects.json ]] || continue
        target="$out/$(basename "$file")"
        [[ $file == */log.csv ]] && target="$out/$name-log.csv"
        if (($(stat -c %s "$file") >= most)); then
            echo "'$file' has $(stat -c %s "$file") bytes, $most are too many to hand over; it stays there." >&2
            failed=1
            continue
        fi
        cp "$file" "$target"
    done
    if ! compgen -G "$runs/$name/*.safetensors" >/dev/null; then
        echo "$name had not taken its first step when $minutes minutes were over: give it more MINUTES." >&2
        failed=1
    fi
done
echo "Weights and logs so far: $out; checkpoints: $runs. The same call goes on."
exit "$failed"
