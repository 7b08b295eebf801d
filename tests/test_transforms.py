"""The operators under torch's transforms: compile with inductor, export, autocast, torch.func."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import CASES, Case, as_tuple
from torch.autograd import forward_ad

import fastvae
from fastvae import evaluation, reference
from fastvae.models import CVAE, VAE, Model, VAEOutput

DETERMINISTIC = [c for c in CASES if not c.name.startswith(("reparameterize", "sample_kl"))]
each_case = pytest.mark.parametrize("case", DETERMINISTIC, ids=lambda c: c.name)


@each_case
def test_functorch_grad_vmap_and_jvp(case: Case) -> None:
    inputs = case.inputs(3, (5,))

    def total(*t: torch.Tensor) -> torch.Tensor:
        return sum(o.sum() for o in as_tuple(case.function(*t)))  # type: ignore[return-value]

    leaves = [t.clone().requires_grad_() for t in inputs]
    expected = torch.autograd.grad(total(*leaves), leaves)
    every = tuple(range(len(inputs)))
    for a, b in zip(torch.func.grad(total, argnums=every)(*inputs), expected, strict=True):
        torch.testing.assert_close(a, b)
    compiled = torch.compile(lambda *t: torch.func.grad(total, argnums=every)(*t), backend="aot_eager")
    for a, b in zip(compiled(*inputs), expected, strict=True):
        torch.testing.assert_close(a, b)

    stacked = [torch.stack([t, 2 * t]) for t in inputs]
    for a, b in zip(as_tuple(torch.func.vmap(case.function)(*stacked)), as_tuple(case.function(*inputs)), strict=True):
        torch.testing.assert_close(a[0], b)

    ones = tuple(torch.ones_like(t) for t in inputs)
    _, tangent = torch.func.jvp(total, tuple(inputs), ones)
    torch.testing.assert_close(tangent, sum(g.sum() for g in expected))


def test_functorch_noise_obeys_vmap_randomness() -> None:
    mu = torch.zeros(4, 3, 5)
    sample = torch.func.vmap(lambda m: fastvae.reparameterize(m, m), randomness="different")(mu)
    assert not torch.equal(sample[0], sample[1])
    same = torch.func.vmap(lambda m: fastvae.sample_kl(m, m)[0], randomness="same")(mu)
    assert torch.equal(same[0], same[1])
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(lambda m: fastvae.reparameterize(m, m))(mu)
    grad = torch.func.grad(lambda v: (fastvae.reparameterize(mu[0], v) ** 2).sum())(mu[0])
    assert grad.abs().sum() > 0
    draws = torch.func.vmap(lambda x: fastvae.binarize(x), randomness="different")(torch.full((2, 3, 50), 0.5))
    assert draws.dtype == torch.bool
    images, index = torch.tensor([[0], [255]], dtype=torch.uint8), torch.tensor([[1, 0], [0, 0]])
    picked = torch.func.vmap(lambda i: fastvae.binarize(images, index=i, dtype=torch.float32), randomness="different")
    assert picked(index).tolist() == [[[1], [0]], [[0], [0]]]


def test_the_private_test_for_transforms_is_there() -> None:
    """ops.py asks torch._C for active transforms; without the function it must not import."""
    assert torch._C._are_functorch_transforms_active() is False
    assert torch.func.vmap(lambda x: x + int(torch._C._are_functorch_transforms_active()))(torch.zeros(2)).tolist() == [
        1,
        1,
    ]


@pytest.mark.parametrize("name", ["elbo_loss", "sample_kl"])
def test_inductor_gives_eager_values_and_gradients(name: str) -> None:
    torch._dynamo.reset()
    case = next(c for c in CASES if c.name == name)
    compiled = torch.compile(case.function, fullgraph=True, dynamic=True)
    for batch, size in ((3, 17), (6, 40)):
        inputs = [t.requires_grad_() for t in case.inputs(batch, (size,), torch.float32)]
        again = [t.detach().clone().requires_grad_() for t in inputs]
        torch.manual_seed(5)
        outputs = as_tuple(compiled(*inputs))
        torch.manual_seed(5)
        expected = as_tuple(case.function(*again))
        for a, b in zip(outputs, expected, strict=True):
            torch.testing.assert_close(a, b)
        sum(o.sum() for o in outputs).backward()  # type: ignore[union-attr]
        sum(o.sum() for o in expected).backward()  # type: ignore[union-attr]
        for a, b in zip(inputs, again, strict=True):
            torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_export(case: Case) -> None:
    class Module(torch.nn.Module):
        def forward(self, *t: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return as_tuple(case.function(*t))

    inputs = tuple(case.inputs(3, (17,), torch.float32))
    program = torch.export.export(Module(), inputs)
    torch.manual_seed(5)
    exported = program.module()(*inputs)
    for a, b in zip(exported, case.call(*inputs), strict=True):
        torch.testing.assert_close(a, b)


class Loss(torch.nn.Module):
    """A model's loss as its forward."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> fastvae.ELBO:
        return self.model.loss(*inputs)


LOADED = """
import sys, torch, fastvae
program, inputs, expected = sys.argv[1:]
torch.manual_seed(5)
result = torch.export.load(program).module()(*torch.load(inputs))
assert type(result) is {kind}, type(result)
for a, b in zip(result, torch.load(expected), strict=True):
    torch.testing.assert_close(a, b)
"""


@pytest.mark.parametrize("kind", [VAEOutput, fastvae.ELBO])
@pytest.mark.parametrize("conditional", [False, True], ids=["VAE", "CVAE"])
def test_exported_model_is_saved_and_loaded_in_another_process(
    kind: type[tuple[torch.Tensor, ...]], conditional: bool, tmp_path: Path
) -> None:
    model = CVAE(4, 2, (3,), 2) if conditional else VAE(4, (3,), 2)
    module = model if kind is VAEOutput else Loss(model)
    inputs = (torch.rand(5, 4), torch.rand(5, 2))[: 1 + conditional]
    names = [str(tmp_path / name) for name in ("program.pt2", "inputs.pt", "expected.pt")]
    torch.export.save(torch.export.export(module, inputs), names[0])
    torch.manual_seed(5)
    expected = module(*inputs)
    torch.manual_seed(5)
    here = torch.export.load(names[0]).module()(*inputs)
    assert type(here) is type(expected) is kind
    for a, b in zip(here, expected, strict=True):
        torch.testing.assert_close(a, b)
    torch.save(inputs, names[1])
    torch.save([t.detach() for t in expected], names[2])
    script = LOADED.format(kind=f"{'fastvae.models' if kind is VAEOutput else 'fastvae'}.{kind.__name__}")
    result = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_every_named_tuple_of_results_can_be_written_down() -> None:
    """What a model and an evaluation give are trees that torch.export and torch.distributed can serialise."""
    from torch.utils import _pytree as pytree

    reports = [evaluation.ELBOReport, evaluation.LikelihoodReport, evaluation.LatentReport]
    for kind in (fastvae.ELBO, VAEOutput, *reports):
        spec = pytree.tree_structure(kind(*[0.0] * len(kind._fields)))
        assert pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec


def test_autocast_keeps_half_inputs_and_float32_sums() -> None:
    layer = torch.nn.Linear(20, 40)
    x = torch.rand(6, 20)
    with torch.autocast("cpu", torch.bfloat16):
        mu, logvar = layer(x).chunk(2, -1)
        z, kl = fastvae.sample_kl(mu, logvar)
        loss = fastvae.sigmoid_cross_entropy(z, x, reduction="mean") + kl.mean()
    assert (mu.dtype, z.dtype, kl.dtype, loss.dtype) == (torch.bfloat16,) * 2 + (torch.float32,) * 2
    expected = reference.gaussian_kl(mu.double(), logvar.double())
    torch.testing.assert_close(kl.double(), expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()


def test_derivatives_of_internal_operators_are_refused() -> None:
    """A kernel without a derivative must not give a zero one in silence."""
    logits = torch.randn(2, 3, requires_grad=True)
    out = torch.ops.fastvae.nll_forward(
        "sigmoid_cross_entropy", logits, None, None, torch.rand(2, 3), None, 1.0, False, None, None, None
    )
    with pytest.raises(RuntimeError):
        out.sum().backward()


@pytest.mark.parametrize("name", ["mlp", "sigmoid_cross_entropy", "gaussian_kl", "reparameterize"])
def test_a_tangent_of_an_upstream_gradient_is_not_lost(name: str) -> None:
    x = torch.randn(2, 3, requires_grad=True)
    out = {
        "mlp": lambda: fastvae.mlp(x, [torch.ones(4, 3)], [None]),
        "sigmoid_cross_entropy": lambda: fastvae.sigmoid_cross_entropy(x, torch.rand(2, 3)),
        "gaussian_kl": lambda: fastvae.gaussian_kl(x, x),
        "reparameterize": lambda: fastvae.reparameterize(x, x),
    }[name]()
    ones = torch.ones_like(out)
    with (
        forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match="forward-mode derivatives need"),
    ):
        torch.autograd.grad(out, x, forward_ad.make_dual(ones, ones))


def test_transformed_functions_have_their_limits_too() -> None:
    inf = torch.inf
    logits, target = torch.tensor([[inf, -inf]]), torch.tensor([[1.0, 0.0]])
    assert torch.func.vmap(fastvae.sigmoid_cross_entropy)(logits[None], target[None]).tolist() == [[0.0]]
    large = torch.full((1, 1, 1), 100.0)
    assert torch.func.vmap(fastvae.gaussian_kl)(large, large, large, large).tolist() == [[0.0]]
    sure = torch.tensor([20.0, -20.0])
    curve = torch.func.hessian(lambda x: fastvae.sigmoid_cross_entropy(x[None], (sure > 0)[None]).sum())(sure)
    torch.testing.assert_close(curve.diag(), torch.sigmoid(-sure.abs()), rtol=1e-6, atol=0)
    near = torch.tensor([[1e-6, -1e-6]])
    kl = torch.func.vmap(lambda v: fastvae.gaussian_kl(0 * v, v))(near[None])
    torch.testing.assert_close(kl, torch.tensor([[5e-13]]), rtol=1e-6, atol=0)
    low = torch.full((1, 1), -160.0)
    nll = torch.func.vmap(lambda v: fastvae.gaussian_nll(low * 0, low * 0, logvar=v))(low[None])
    assert nll.isfinite().all()
    grad = torch.func.grad(lambda v: fastvae.reparameterize(v * 0, v).sum())(low)
    assert grad.isfinite().all()


def test_internal_operators_refuse_an_upstream_gradient_of_another_shape() -> None:
    logits = torch.zeros(64, 4)
    with pytest.raises(ValueError, match=r"one value for each row, got shape \[1\]"):
        torch.ops.fastvae.nll_backward(
            torch.ones(1), "sigmoid_cross_entropy", logits, None, None, logits, None, 1.0, False, None, None, None,
            [True] + 5 * [False],
        )  # fmt: skip
