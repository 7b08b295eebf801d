#!/usr/bin/env bash
# Everything about CUDA that needs no GPU. Builds the library in an environment of its own against a CUDA build of
# PyTorch, the oldest supported, with warnings as errors: spilled registers and local memory among them. Then runs the
# operators' tests on the CUDA kernels, compiled for the CPU. Needs nvcc. CUDA_ARCHITECTURES names fewer to compile for.
set -euo pipefail
source=$PWD
venv=$source/.venv-cuda
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_WAIT_POLICY=passive  # of two processes on a few cores
export FASTVAE_HOOKS=1           # for the tests
strict=-Ccmake.define.CMAKE_COMPILE_WARNING_AS_ERROR=ON
tests=(-q -n 2 --durations 8 -p no:cacheprovider -o pythonpath= -m "not slow")

command -v nvcc >/dev/null || { echo "no nvcc: the CUDA toolkit is needed"; exit 1; }
if [ ! -e "$venv/.installed" ]; then
  "$PYTHON" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet torch==2.11.0 numpy pytest pytest-xdist hypothesis scipy setuptools
  touch "$venv/.installed"
fi
python=$venv/bin/python

echo "what cannot be built says why:"
refused() { # message, environment...
  local message=$1
  shift
  if env "$@" "$python" -m pip wheel --no-deps --wheel-dir "$work/none" "$source" >"$work/log" 2>&1; then
    echo "built, with $*"; exit 1
  fi
  # CMake breaks lines where it likes.
  tr -s ' \n' ' ' <"$work/log" | grep -qF "$message" || { cat "$work/log"; exit 1; }
  echo "  $*"
}
refused "FASTVAE_CUDA must be 0, 1 or unset, got 'yes'" FASTVAE_CUDA=yes
refused "FASTVAE_CUDA=1 needs nvcc" FASTVAE_CUDA=1 CUDACXX=/nowhere/nvcc
refused "FASTVAE_CUDA=1 needs a CUDA build of PyTorch" FASTVAE_CUDA=1 FASTVAE_TORCH_PYTHON="$PYTHON"

architectures=${CUDA_ARCHITECTURES:-80-real;90-real;100-real}
echo "$architectures:"
FASTVAE_CUDA=1 "$python" -m pip install --quiet --no-deps --force-reinstall "$strict" \
  -Ccmake.define.CMAKE_CUDA_ARCHITECTURES="$architectures" "$source"
cd "$source/tests"
"$python" cuda/build.py
"$python" -m pytest "${tests[@]}" -k "not gradcheck and not threads_do_not" test_errors.py test_transforms.py \
  test_linear_sigmoid_cross_entropy.py
# What the emulated kernels, below and with the same PyTorch, are not asked.
"$python" -m pytest "${tests[@]}" -k "opcheck or compile" test_operators.py

echo "the CUDA kernels on the CPU:"
FASTVAE_CUDA=emulated "$python" -m pip install --quiet --no-deps --target "$work/emulated" "$source"
export PYTHONPATH=$work/emulated
"$python" -c 'import fastvae; assert fastvae.build_info()["cuda_architectures"] == ["emulated"], fastvae.build_info()'
# Without what takes long where threads are emulated.
"$python" -m pytest "${tests[@]}" -k "not opcheck and not operator_check and not compile and not threads_do_not and \
  not half_a_million and not no_dense_copy" test_operators.py \
  test_sigmoid_cross_entropy.py test_gaussian_kl.py test_gaussian_nll.py test_elbo_loss.py test_binarize.py \
  test_compressed.py test_linear_sigmoid_cross_entropy.py test_distributions.py test_noise.py test_mlp.py \
  test_optim.py
