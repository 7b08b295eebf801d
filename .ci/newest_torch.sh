#!/usr/bin/env bash
# The operators' and the training's tests on another PyTorch, in the environment of NEWEST, a Python that has it; the
# kernels are compiled for the CPU. Minutes: to be run before a release.
set -euo pipefail
source=$PWD
export OMP_WAIT_POLICY=passive  # of two processes on a few cores

torch=$("$NEWEST" -c 'import torch; print(torch.__version__.split("+")[0])')
# Not editable: the environment for development keeps its own library. With the tests' hooks.
FASTVAE_HOOKS=1 FASTVAE_CUDA=0 "$NEWEST" -m pip install --quiet "torch==$torch" "$source[test]"
cd "$source/tests"
"$NEWEST" -c 'import fastvae, torch; print(fastvae.__file__, torch.__version__)'
"$NEWEST" -m pytest -q -n 2 --dist loadfile --durations 8 -p no:cacheprovider -o pythonpath= \
  -m "not slow" test_operators.py test_errors.py test_transforms.py test_math.py test_formulas.py \
  test_sigmoid_cross_entropy.py test_gaussian_kl.py test_gaussian_nll.py test_elbo_loss.py test_binarize.py \
  test_linear_sigmoid_cross_entropy.py test_distributions.py test_noise.py test_vae.py test_cvae.py test_objectives.py \
  test_evaluation.py test_training.py test_checkpoint.py test_cli.py
