#!/usr/bin/env bash
# Release wheels for the PyTorch of each Python that is named, and an index of them, in dist/index:
#   PYTHON=.venv/bin/python .ci/wheels.sh .venv-torch-2.11.0/bin/python .venv-torch-2.14.1/bin/python
# CUDA kernels are compiled where that PyTorch has CUDA and nvcc is there; FASTVAE_CUDA=0 leaves them out. pip and uv
# then install from the index. PYTHON has the tools of a release.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$PYTHON" -m build --sdist --outdir "$work" . >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
for python; do
  rm -rf "$work/wheel"
  "$python" -m pip wheel --quiet --no-deps --wheel-dir "$work/wheel" "$work"/fastvae_torch-*.tar.gz
  "$PYTHON" .ci/release.py dist/index "$work"/wheel/*.whl
done
"$PYTHON" .ci/index_check.py dist/index "$@"
