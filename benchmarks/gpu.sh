#!/usr/bin/env bash
# Everything we want to know of a GPU, in one go: one page of Markdown on standard output, progress on standard error.
#
#   bash benchmarks/gpu.sh > page.md
#   PYTHON=python3 CIFAR=FOLDER bash benchmarks/gpu.sh > page.md
#
# It needs no network and at most nine minutes: each part is given its seconds, and one that takes longer is stopped and
# said to be. PYTHON has jax for the GPU, and what cnnjax needs; with PyTorch for the GPU in it, PyTorch is compared with.
# CIFAR is a folder with CIFAR-10's original files (`cifar10 --data.raw-dir`); without it the run is on digits.
# SCALE=0.2 gives each part a fifth of its seconds: a rehearsal. It also runs without a GPU, and says so.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
scale=${SCALE:-1}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export XLA_PYTHON_CLIENT_PREALLOCATE=false  # PyTorch shares the GPU with JAX in one process
export TORCHINDUCTOR_CACHE_DIR JAX_COMPILATION_CACHE_DIR
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
TORCHINDUCTOR_CACHE_DIR=$work/inductor JAX_COMPILATION_CACHE_DIR=$work/jax

missing=$("$python" - <<'PY'
import importlib.util
names = "jax flax optax numpy orbax.checkpoint tyro rich PIL matplotlib sklearn tensorflow_datasets grain simplejpeg safetensors"
def there(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False
print(" ".join(name for name in names.split() if not there(name)))
PY
) || { echo "gpu.sh: PYTHON=$python does not run" >&2; exit 2; }
if [ -n "$missing" ]; then
  echo "gpu.sh: $python lacks: $missing (pip install -e '.[cuda]', or PYTHON=another)" >&2
  exit 2
fi

part() {  # TITLE SECONDS COMMAND...: the command's output as a block, stopped after that many seconds
  local title=$1 seconds status started shown
  seconds=$(awk -v s="$2" -v scale="$scale" 'BEGIN {printf "%d", s * scale + 0.5}')
  shift 2
  echo "gpu.sh: $title (at most $seconds s)" >&2
  started=$SECONDS
  shown=${*/#$python/python}
  printf '\n## %s\n\n`%s`\n\n```\n' "$title" "${shown/$work/WORK}"
  timeout --kill-after=5 "$seconds" "$@" </dev/null >"$work/stdout" 2>"$work/stderr"
  status=$?
  grep -v '^{"' "$work/stdout"  # the line of JSON is for programs
  if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
    echo "(stopped after $seconds s)"
  elif [ "$status" -ne 0 ]; then
    echo "(status $status)"
    tail -n 5 "$work/stderr"
  fi
  printf '```\n\n%s s.\n' $((SECONDS - started))
}

echo "# A GPU, measured on $(date -u +%Y-%m-%d)"
if command -v nvidia-smi >/dev/null; then
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader | sed 's/^/\n/'
else
  printf '\nNo GPU (no nvidia-smi): a rehearsal.\n'
fi

# The seconds add up to 520.
part "Doctor" 95 "$python" -m cnnjax doctor
for precision in float32 tf32 bfloat16; do
  part "Training steps in $precision" 80 "$python" benchmarks/step.py --precision "$precision" \
    --networks cifar_resnet20 resnet18 --channels-last --rounds 5 --seconds 0.3
done
part "Operations" 60 "$python" benchmarks/ops.py pool grouped --rounds 3
XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_deterministic_ops=true" \
  part "Gradients of max pooling, deterministic" 25 "$python" benchmarks/ops.py pool --rounds 3
if [ -n "${CIFAR:-}" ]; then
  data=(--data.raw-dir "$CIFAR")
else
  data=(--data.name digits --data.size 32 32 --data.limit 1400 --data.validation 0.1)
fi
for calls in 1 50; do
  part "ResNet-20, 300 steps, $calls in a call" 50 "$python" -m experiments.cifar_resnet20 "${data[@]}" \
    --train.steps 300 --train.evaluate-every 300 --run.log-every 300 --run.steps-per-call "$calls" --workdir "$work/run$calls"
done
