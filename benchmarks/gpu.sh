#!/usr/bin/env bash
# On a machine with a GPU, in under ten minutes: builds the extension for it, runs the operators' tests, the sanitizers
# and the benchmarks. Needs PyTorch with CUDA, nvcc, CMake, ninja, pybind11, scikit-build-core, pytest and hypothesis; no
# network. Leaves gpu_ops.json, gpu_train.json, gpu_large.json and the logs in $OUT, and ends with a short table.
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
pytest=(python -m pytest -q -p no:cacheprovider -o pythonpath= -m "not slow" -k cuda)

FASTVAE_CUDA=1 step build 150 python -m pip install --no-build-isolation --no-deps \
  -Ccmake.define.CMAKE_CUDA_ARCHITECTURES=native -e .
[ ${#failed[@]} -eq 0 ] || { tail -n 40 "$out/build.log"; exit 1; }
export FAIL_WITHOUT_CUDA=1
step gpu_tests 40 "${pytest[@]}" tests/test_cuda.py
step tests 100 "${pytest[@]}" tests/test_operators.py tests/test_sigmoid_cross_entropy.py tests/test_gaussian_kl.py \
  tests/test_gaussian_nll.py tests/test_elbo_loss.py tests/test_linear_sigmoid_cross_entropy.py tests/test_binarize.py \
  tests/test_distributions.py
# torch's allocator would hide what lies beside a tensor.
for tool in memcheck racecheck initcheck; do
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$tool" 35 \
    compute-sanitizer --tool "$tool" --error-exitcode 9 python tests/cuda/exercise.py
done
step ops 100 python -m benchmarks.bench_ops --device cuda --scale 32 --rounds 5 --json "$out/gpu_ops.json"
step train 45 python -m benchmarks.bench_train --device cuda --batch 100 8192 --rounds 5 --json "$out/gpu_train.json"
step large 40 python -m benchmarks.bench_train --device cuda --batch 65536 --dtype bfloat16 --rounds 5 \
  --json "$out/gpu_large.json"

for name in gpu_tests tests; do grep -E "^(FAILED|ERROR)" "$out/$name.log" | head -n 20; done
cut -c 1-230 "$out/ops.log"
cat "$out/train.log" "$out/large.log"
[ ${#failed[@]} -eq 0 ] || { printf 'failed: %s\n' "${failed[@]}"; exit 1; }
