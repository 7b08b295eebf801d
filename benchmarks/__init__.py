"""Benchmarks of the operators and of a training step: ``python -m benchmarks`` runs a few in about a minute."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# `python -m` puts the source folder first on the path, where it hides a package that was installed from it.
if str(ROOT) in sys.path:
    sys.path.remove(str(ROOT))
    sys.path.append(str(ROOT))

# A graph that an earlier build left in the compiler's caches would be run in place of this build's.
os.environ.update(TORCHINDUCTOR_FX_GRAPH_CACHE="0", TORCHINDUCTOR_AUTOGRAD_CACHE="0")
# The profiler, which counts memory here, tells of each of its starts.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
