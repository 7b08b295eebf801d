#!/usr/bin/env bash
# On a machine with a GPU, in under nine minutes: builds the extension for it, runs the operators' tests, the
# sanitizers and the benchmarks. Needs PyTorch with CUDA, nvcc, CMake, ninja, pybind11, scikit-build-core, pytest and
# hypothesis; no network. Leaves gpu_ops.json, gpu_train.json and the logs in $OUT, and ends with a short table.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-benchmarks/results}
failed=()

step() { # name, seconds, command...
  local name=$1 seconds=$2 start=$SECONDS
  shift 2
  timeout "$seconds" "$@" >"$out/$name.log" 2>&1 || failed+=("$name: $?")
  echo "$name: $((SECONDS - start)) s; $(tail -n 1 "$out/$name.log" | cut -c 1-160)"
}

step build 200 python -m pip install --no-build-isolation --no-deps \
  -Ccmake.define.CMAKE_CUDA_ARCHITECTURES=native -Ccmake.define.CMAKE_COMPILE_WARNING_AS_ERROR=ON -e .
export FAIL_WITHOUT_CUDA=1
step tests 150 python -m pytest -q -o pythonpath= -p no:cacheprovider -m "not slow" -k cuda \
  tests/test_cuda.py tests/test_operators.py tests/test_sigmoid_cross_entropy.py tests/test_gaussian_kl.py \
  tests/test_gaussian_nll.py tests/test_elbo_loss.py tests/test_binarize.py tests/test_distributions.py
for tool in memcheck racecheck initcheck; do
  step "$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 python tests/cuda/exercise.py
done
step ops 150 python -m benchmarks.bench_ops --device cuda --scale 32 --rounds 7 --json "$out/gpu_ops.json"
step train 60 python -m benchmarks.bench_train --device cuda --batch 100 8192 --rounds 5 --json "$out/gpu_train.json"

cut -c 1-230 "$out/ops.log"
cat "$out/train.log"
[ ${#failed[@]} -eq 0 ] || { printf 'failed: %s\n' "${failed[@]}"; exit 1; }
