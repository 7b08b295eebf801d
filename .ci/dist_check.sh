#!/usr/bin/env bash
# Builds the sdist and, from it, the wheel, and of that the release wheel, in build/index; checks what they hold; installs
# the wheel into an environment of its own and uses it there. PYTHON has torch, pip and the tools of a release.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
source=$PWD

"$PYTHON" -m build --sdist --outdir "$work/dist" "$source" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
tar -xzf "$work"/dist/fastvae_torch-*.tar.gz -C "$work"
cd "$work"/fastvae_torch-*/

echo "sdist:"
git -C "$source" ls-files | grep -v '^\.' | sort >"$work/expected"
find . -type f ! -path ./PKG-INFO | sed 's|^\./||' | sort >"$work/actual"
diff "$work/expected" "$work/actual" || { echo "the sdist does not hold what it should"; exit 1; }
echo "  as tracked: $(wc -l <"$work/actual") files"

# By the same paths from here as in the clone, so that a compiler's cache knows the files again.
ln -s "$(dirname "$(dirname "$PYTHON")")" .venv
.venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir "$work/wheel" .
echo "wheel:"
"$PYTHON" -m zipfile -l "$work"/wheel/fastvae_torch-*.whl | awk 'NR > 1 {print $1}' | grep -v '\.dist-info/' | sort >"$work/actual"
{ git -C "$source" ls-files -- fastvae; echo fastvae/_build.py; echo fastvae/libfastvae.so; } | sort >"$work/expected"
diff "$work/expected" "$work/actual" || { echo "the wheel does not hold what it should"; exit 1; }
echo "  the package and its library: $(wc -l <"$work/actual") files"

# What it needs and calls is checked there.
index=$source/build/index
rm -rf "$index"
"$PYTHON" "$source/.ci/release.py" "$index" "$work"/wheel/fastvae_torch-*.whl

# A function that the linker may share between files, compiled for AVX-512, could be the copy that a machine
# without it runs: the kernels must define none.
kernels=$(find build -path '*kernels_*' -name '*.o')
[ -n "$kernels" ] || { echo "no kernel objects to look at"; exit 1; }
# DW.ref.* is a pointer to the exception personality, not code.
if echo "$kernels" | xargs nm -C | grep -E ' [WVu] ' | grep -v ' DW\.ref\.'; then
  echo "kernels compiled per instruction set define symbols that are not their own"; exit 1
fi

"$PYTHON" -m venv "$work/venv"
# The environment's torch and the extras come from the one that built the wheel; fastvae itself does not.
"$PYTHON" -c 'import torch, os; print(os.path.dirname(os.path.dirname(torch.__file__)))' \
  >"$("$work/venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')/torch.pth"
"$work/venv/bin/python" -m pip install --quiet --no-deps "$work"/wheel/fastvae_torch-*.whl
cd "$work"
"$work/venv/bin/python" - <<'EOF'
import pathlib, sys
import torch, fastvae

assert pathlib.Path(fastvae.__file__).is_relative_to(sys.prefix), fastvae.__file__
logits = torch.randn(8, 784, requires_grad=True)
moments = torch.randn(8, 64, requires_grad=True)
loss = fastvae.elbo_loss(logits, torch.rand(8, 784), *moments.chunk(2, -1)).loss
loss.backward()
assert logits.grad.isfinite().all() and moments.grad.isfinite().all()
print("installed:", fastvae.build_info())
EOF
"$work/venv/bin/fastvae" info
"$work/venv/bin/fastvae" train --epochs 1 --out "$work/run"
test -s "$work/run/samples.png"
