#!/usr/bin/env bash
# On a machine with a GPU:
#   benchmarks/gpu.sh check     builds; tests and sanitizers; each kernel beside a copy; a training step. Five minutes.
#   benchmarks/gpu.sh measure   builds; tests; kernels, operators and training steps against eager PyTorch and
#                               torch.compile. Seven.
# Needs PyTorch with CUDA, nvcc, CMake, ninja, pybind11, scikit-build-core, pytest with xdist and hypothesis; no network.
# Whatever fails, the rest runs. $OUT (or benchmarks/results) gets gpu-*.json and all logs in logs.tar.gz, packed anew
# after every step; what matters is printed last. GPU_STAND_IN=COMMAND rehearses: it is run in place of every step.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-$PWD/benchmarks/results}
logs=$(mktemp -d) packed=$(mktemp -u)
export PATH=$PATH:/usr/local/cuda/bin PYTHONUNBUFFERED=1 FAIL_WITHOUT_CUDA=1

step() { # name, seconds, command...
  local name=$1 seconds=$2 start=$SECONDS
  shift 2
  timeout -s INT -k 5 "$seconds" ${GPU_STAND_IN:-} "$@" >"$logs/$name.log" 2>&1
  local status=$?
  echo "$name: $((SECONDS - start)) s, status $status; $(tail -n 1 "$logs/$name.log" | cut -c 1-150)" |
    tee -a "$logs/steps"
  tar -czf "$packed.$BASHPID" -C "$logs" . 2>/dev/null
  mv "$packed.$BASHPID" "$out/logs.tar.gz"  # whole, also where several steps end at once
  return $status
}

build() {
  local capability
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
  FASTVAE_CUDA=1 step build 170 python3 -m pip install --no-build-isolation --no-deps \
    -Ccmake.define.CMAKE_CUDA_ARCHITECTURES="${capability:-90}-real" -e . || { tail -n 40 "$logs/build.log"; exit 1; }
}

tests() { # processes
  step tests 150 python3 -m pytest -q -n "$1" --dist worksteal --max-worker-restart 12 --timeout 60 -p no:cacheprovider \
    --durations 15 -m "not slow" -k cuda tests/test_cuda.py tests/test_operators.py tests/test_sigmoid_cross_entropy.py \
    tests/test_gaussian_kl.py tests/test_gaussian_nll.py tests/test_elbo_loss.py tests/test_binarize.py \
    tests/test_linear_sigmoid_cross_entropy.py tests/test_mlp.py tests/test_optim.py tests/test_distributions.py
}

# The same sizes where the compiler's cache is filled and where is measured.
ops=(python3 -m benchmarks.bench_ops --device cuda --elements 134217728)
train=(python3 -m benchmarks.bench_train --device cuda --batch 100 8192 65536)

bench_kernels() {
  step nvcc 100 nvcc -O3 -std=c++20 -arch=native -DFASTVAE_DEVICE=cuda --expt-relaxed-constexpr -o "$packed.kernels" \
    benchmarks/bench_kernels.cu csrc/cuda/table.cpp $(find build -path '*kernels_CUDA*' -name '*.o')
}

check() {
  step smoke 90 python3 tests/cuda/smoke.py
  # torch's allocator would hide what lies beside a tensor; our names hold "fastvae". racecheck ends with an error of
  # its own where cuBLAS's kernels run.
  for tool in memcheck "racecheck operators" synccheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step ${tool% *} 150 compute-sanitizer --tool ${tool% *} --kernel-name kns=fastvae \
      --error-exitcode 9 python3 tests/cuda/exercise.py ${tool#* } &
  done
  bench_kernels &
  tests 12
  wait
  # From here on nothing else uses the GPU.
  step kernels 60 "$packed.kernels"
  step ncu 60 ncu --clock-control none --csv --kernel-name regex:walk --launch-count 60 --metrics \
    gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,smsp__inst_executed.sum,sm__warps_active.avg.pct_of_peak_sustained_active,launch__registers_per_thread \
    "$packed.kernels" --once
  step train 60 python3 -m benchmarks.bench_train --device cuda --batch 100 65536 --rounds 5 --contenders eager fastvae \
    --json "$out/gpu-check.json"
}

# What is measured has passed its tests. Beside them the compiler's cache is filled, by several processes.
warm() {
  bench_kernels &
  for i in 0 1 2 3 4 5 6 7; do
    TORCHINDUCTOR_COMPILE_THREADS=1 step "warm$i" 150 "${ops[@]}" --rounds 0 --part $i 8 &
  done
  for dtype in float32 bfloat16 tf32; do
    TORCHINDUCTOR_COMPILE_THREADS=1 step "warm-$dtype" 150 "${train[@]}" --rounds 0 --dtype $dtype &
  done
  tests 6
  wait
}

measure() {
  warm
  nvidia-smi --query-gpu=name,clocks.sm,clocks.mem,temperature.gpu,power.draw --format=csv -l 2 >"$logs/clocks.csv" &
  step kernels 30 "$packed.kernels"
  step ops 165 "${ops[@]}" --rounds 5 --json "$out/gpu-ops.json"
  step train 75 "${train[@]}" --rounds 5 --json "$out/gpu-train.json"
  kill %?clocks
}

summary() {
  cat "$logs/steps"
  for log in "$logs"/*.log; do
    case $(basename "$log" .log) in
      smoke) head -n 25 "$log" ;;
      tests) grep -E "^(FAILED|ERROR)|passed|failed" "$log" | cut -c 1-200 | head -n 30 ;;
      *check) grep -E "ERROR SUMMARY|RACECHECK SUMMARY|Invalid|hazard" "$log" | sort | uniq -c | head -n 8 ;;
      kernels | ops | train) cut -c 1-160 "$log" ;;
    esac
  done
}

mkdir -p "$out"
case ${1:-} in
  check | measure) build && "$1"; summary ;;
  *) sed -n 2,5p "$0"; exit 2 ;;
esac
! grep -qv "status 0" "$logs/steps"
