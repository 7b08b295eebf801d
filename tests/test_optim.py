"""Adam: its operator by itself, and the class, which is torch's but for who computes a step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tolerances import UNIT, assert_within
from torch import Tensor, nn

import fastvae
from fastvae import optim

U = UNIT[torch.float32]
SIZES = [0, 1, 3, 4, 5, 1023, 70_000]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tutorial": {"betas": (0.0, 0.999), "weight_decay": 5e-4},
    "decay": {"weight_decay": 0.1},
    "maximize": {"maximize": True, "betas": (0.5, 0.9), "eps": 1e-3},
    "eps 0": {"eps": 0.0},
}
each_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
pytestmark = pytest.mark.usefixtures("device")


class Exact:
    """torch's Adam in float64 beside ours, and how far ours may be off: roundings by their number, to first order.

    With a = |gradient| + decay |value|, of which nothing cancels, each step adds to the mean less than 8 roundings of
    its moving average A: of beta and of 1 - beta, of the products of both, of their sum, and two or three of the
    gradient with its decay, in which the value's own error counts too. Of the square they are less than 12 of the
    moving average of a^2. An update is lr / (1 - beta1^t) mean / (root + eps): 24 roundings of it in its numbers (4
    each in the corrections, whose exponential is within 2.1; 2 of each square root and 7 of the quotient on a GPU),
    the error of the mean, and that of the square halved by its root. Adding it is a last rounding of the value.
    """

    def __init__(self, values: Sequence[Tensor], lr: float = 1e-3, **options: Any) -> None:
        self.values = [nn.Parameter(v.detach().double()) for v in values]
        self.adam = torch.optim.Adam(self.values, lr=lr, foreach=False, **options)
        self.size = [torch.zeros_like(v, requires_grad=False) for v in self.values]
        self.size_of_square = [torch.zeros_like(v, requires_grad=False) for v in self.values]
        self.error = [torch.zeros_like(v, requires_grad=False) for v in self.values]
        self.steps = 0

    def step(self, grads: Sequence[Tensor | None]) -> None:
        group = self.adam.param_groups[0]
        (beta1, beta2), lr = group["betas"], float(group["lr"])
        self.steps += 1
        lists = zip(self.values, grads, self.size, self.size_of_square, strict=True)
        for value, grad, size, square in lists:
            value.grad = None if grad is None else grad.double()
            if grad is not None:
                a = grad.double().abs() + group["weight_decay"] * value.detach().abs()
                size.mul_(beta1).add_(a, alpha=1 - beta1)
                square.mul_(beta2).add_(a * a, alpha=1 - beta2)
        self.adam.step()
        for i, (value, grad) in enumerate(zip(self.values, grads, strict=True)):
            if grad is None:
                continue
            state = self.adam.state[value]
            of_mean, of_square = self.bounds(i)
            correction = 1 - beta2 ** float(state["step"])
            root = state["exp_avg_sq"].div(correction).sqrt()
            below = root + group["eps"]
            of_root = of_square / correction / (2 * root).clamp_min(1e-300) + 24 * U * below
            rate = lr / (1 - beta1 ** float(state["step"])) / below
            self.error[i] += rate * (of_mean + state["exp_avg"].abs() * of_root / below)
            self.error[i] += 2 * U * value.detach().abs()

    def bounds(self, i: int) -> tuple[Tensor, Tensor]:
        return 8 * self.steps * U * self.size[i], 12 * self.steps * U * self.size_of_square[i]

    def check(self, values: Sequence[Tensor], states: Sequence[dict[str, Tensor]]) -> None:
        for i, (value, state) in enumerate(zip(values, states, strict=True)):
            assert_within(value.detach(), self.values[i].detach(), self.error[i])
            expected = self.adam.state.get(self.values[i], {})
            assert state.keys() == expected.keys()
            if state:
                assert float(state["step"]) == float(expected["step"])
                of_mean, of_square = self.bounds(i)
                assert_within(state["exp_avg"], expected["exp_avg"], of_mean)
                assert_within(state["exp_avg_sq"], expected["exp_avg_sq"], of_square)


def states_of(values: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    return [
        {"step": torch.zeros(()), "exp_avg": torch.zeros_like(v), "exp_avg_sq": torch.zeros_like(v)} for v in values
    ]


def run(
    values: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[dict[str, Tensor]], lr: float | Tensor = 1e-3,
    *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0, maximize: bool = False
) -> None:  # fmt: skip
    """The operator by itself."""
    lists = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")]
    torch._foreach_add_(lists[2], 1)
    number = isinstance(lr, float)
    rate = (None, lr) if number else (lr, 0.0)
    torch.ops.fastvae.adam_(list(values), list(grads), *lists, *rate, *betas, eps, weight_decay, maximize)


def shifted(t: Tensor) -> Tensor:
    """The same at an address that no vector begins at."""
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


@each_options
def test_steps_match_adam_in_float64(options: dict[str, Any]) -> None:
    values = [torch.randn(size) for size in SIZES]
    states, exact = states_of(values), Exact(values, **options)
    for _ in range(5):
        grads = [torch.randn(size) for size in SIZES]
        run(values, grads, states, **options)
        exact.step(grads)
        exact.check(values, states)


@pytest.mark.parametrize("which", ["values", "grads", "exp_avg", "exp_avg_sq"])
def test_tensors_may_lie_anywhere(which: str) -> None:
    values = [torch.randn(size) for size in SIZES]
    grads = [torch.randn(size) for size in SIZES]
    states = states_of(values)
    plain = copy.deepcopy((values, grads, states))
    if which in ("values", "grads"):
        tensors = values if which == "values" else grads
        tensors[:] = [shifted(t) for t in tensors]
    else:
        for state in states:
            state[which] = shifted(state[which])
    run(*plain)
    run(values, grads, states)
    for ours, theirs in zip(values, plain[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2 * U, atol=0)


def test_nothing_beside_the_tensors_is_written() -> None:
    for size in (1, 4, 5, 2047, 2049):
        memory = [torch.full((size + 16,), 7.0) for _ in range(4)]
        inner = [m[8:-8] for m in memory]
        states = [{"step": torch.zeros(()), "exp_avg": inner[2], "exp_avg_sq": inner[3]}]
        run([inner[0]], [inner[1]], states)
        for m in memory:
            assert (m[:8] == 7).all()
            assert (m[-8:] == 7).all()
        assert (inner[1] == 7).all()


@pytest.mark.parametrize("number", [1, 48, 49, 100])
def test_lists_of_any_length(number: int) -> None:
    values = [torch.randn(1 + 97 * i % 5000) for i in range(number)]
    states, exact = states_of(values), Exact(values)
    for _ in range(2):
        grads = [torch.randn_like(v) for v in values]
        run(values, grads, states)
        exact.step(grads)
    exact.check(values, states)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_learning_rate_may_be_a_tensor(dtype: torch.dtype) -> None:
    values, grads = [torch.randn(999)], [torch.randn(999)]
    other = [values[0].clone()]
    run(values, grads, states_of(values), 0.25)
    run(other, grads, states_of(other), torch.tensor(0.25, dtype=dtype))
    assert torch.equal(values[0], other[0])


def test_late_steps_have_no_correction_left() -> None:
    values, grads = [torch.randn(10)], [torch.randn(10)]
    states = states_of(values)
    states[0]["step"].fill_(1e6)
    exact = values[0].double() - 0.1 * (0.1 * grads[0].double()) / (0.001**0.5 * grads[0].double().abs() + 1e-8)
    run(values, grads, states, 0.1)
    torch.testing.assert_close(values[0].double(), exact, rtol=16 * U, atol=16 * U)


def test_what_is_not_finite_is_as_in_torch() -> None:
    grads = [torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 1e-30, 0.0])]
    values = [torch.ones(7)]
    theirs = nn.Parameter(values[0].clone())
    adam, states = torch.optim.Adam([theirs], foreach=False), states_of(values)
    for _ in range(2):
        run(values, grads, states)
        theirs.grad = grads[0]
        adam.step()
    torch.testing.assert_close(values[0], theirs.detach(), equal_nan=True)
    torch.testing.assert_close(states[0]["exp_avg_sq"], adam.state[theirs]["exp_avg_sq"], equal_nan=True)


def arguments() -> dict[str, Any]:
    tensors = {name: [torch.zeros(3, 4)] for name in ("params", "grads", "exp_avgs", "exp_avg_sqs")}
    numbers = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "maximize": False}
    return tensors | {"steps": [torch.ones(())], "lr_tensor": None} | numbers


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("grads", lambda: [], r"grads must hold one tensor for each parameter, got 0 for 1"),
        ("steps", lambda: [torch.ones(())] * 2, r"steps must hold one tensor for each parameter, got 2 for 1"),
        ("params", lambda: [torch.zeros(3, 4).double()], r"params\[0\] must be float32, got Double"),
        ("grads", lambda: [torch.zeros(3, 4).half()], r"grads\[0\] must be float32, got Half"),
        ("exp_avgs", lambda: [torch.zeros(4, 3)], r"params\[0\] and exp_avgs\[0\] must have the same shape, got"),
        ("exp_avg_sqs", lambda: [torch.zeros(4, 3).t()], r"exp_avg_sqs\[0\] must have the strides of params\[0\], \[4"),
        ("params", lambda: [torch.zeros(3, 8)[:, ::2]], r"params\[0\] must be dense, got strides \[8, 2\]"),
        (
            "grads",
            lambda: [torch.zeros(3, 4, device="meta")],
            r"params\[0\] and grads\[0\] must be on the same device, got",
        ),
        ("steps", lambda: [torch.ones(1)], r"steps\[0\] must be 0-d, got \[1\]"),
        ("steps", lambda: [torch.ones((), dtype=torch.int64)], r"steps\[0\] must be float32, got Long"),
        ("steps", lambda: [torch.ones((), device="meta")], r"steps\[0\] must be on the device of .* or the CPU, got"),
        ("lr_tensor", lambda: torch.ones(2), r"lr_tensor must be 0-d, got \[2\]"),
        ("lr_tensor", lambda: torch.ones((), device="meta"), r"lr_tensor must be on the device of the parameters, "),
        ("lr_tensor", lambda: torch.ones((), dtype=torch.int64), r"lr_tensor must be float32, float64, bfloat16 or"),
    ],
)
def test_errors_name_what_was_wrong(name: str, value: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^fastvae\.adam_: {message}"):
        torch.ops.fastvae.adam_(**(arguments() | {name: value()}))


def test_torch_knows_what_it_changes() -> None:
    given = arguments()
    given["grads"][0].fill_(1.0)
    torch.library.opcheck(torch.ops.fastvae.adam_.default, (), given, test_utils=("test_schema", "test_faketensor"))
    parameter = nn.Parameter(torch.ones(3, 4))
    result = (parameter * parameter).sum()
    with torch.no_grad():
        torch.ops.fastvae.adam_(**(given | {"params": [parameter]}))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()


# The class.


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(20, 33), nn.ReLU(), nn.Linear(33, 1), nn.Linear(1, 5))


def train(model: nn.Module, adam: torch.optim.Optimizer, steps: int = 3, seed: int = 2) -> list[float]:
    torch.manual_seed(seed)
    losses = []
    for _ in range(steps):
        adam.zero_grad()
        loss = model(torch.randn(8, 20)).square().sum()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tensors the operator got each time; the class takes it on the CPU too."""
    seen: list[int] = []
    operator = optim._adam_
    monkeypatch.setattr(optim, "_adam_", lambda params, *rest: seen.append(len(params)) or operator(params, *rest))
    monkeypatch.setattr(optim, "_DEVICES", ("cpu", "cuda"))
    return seen


@pytest.mark.parametrize("fused", [None, True])
def test_on_a_cpu_it_is_torch_s_bit_by_bit(fused: bool | None, device: str) -> None:
    if device != "cpu":
        pytest.skip("of the CPU")
    results = []
    for kind in (torch.optim.Adam, fastvae.optim.Adam):
        model = network()
        train(model, kind(model.parameters(), lr=1e-2, weight_decay=0.1, fused=fused))
        results.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(results[0].values(), results[1].values(), strict=True))


@each_options
@pytest.mark.parametrize("how", ["default", "fused", "capturable"])
def test_the_class_takes_the_operator(how: str, options: dict[str, Any], calls: list[int]) -> None:
    values = [nn.Parameter(torch.randn(size)) for size in (0, 5, 1024)]
    values += [nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))]
    values += [nn.Parameter(torch.randn(4, 3, 2).permute(order)) for order in ((1, 0, 2), (2, 1, 0))]
    values += [nn.Parameter(torch.ones(2))]
    # The fused one of a CPU has nothing against capturable, as torch's others have.
    adam = fastvae.optim.Adam(
        values, fused=None if how == "default" else True, capturable=how == "capturable", **options
    )
    exact = Exact(values, **options)
    for _ in range(4):
        grads = [torch.randn_like(v, requires_grad=False) for v in values[:-1]]
        for value, grad in zip(values, grads, strict=False):
            value.grad = grad
        adam.step()
        exact.step([*grads, None])
        exact.check(values, [adam.state.get(v, {}) for v in values])
    assert calls == [6] * 4


def test_states_go_from_one_to_the_other(calls: list[int]) -> None:
    model, other = network(), network()
    ours, theirs = fastvae.optim.Adam(model.parameters(), fused=True), torch.optim.Adam(other.parameters(), fused=True)
    losses = train(model, ours), train(other, theirs)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    state = copy.deepcopy(ours.state_dict())
    assert str(state["param_groups"]) == str(theirs.state_dict()["param_groups"])
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    theirs.load_state_dict(state)
    losses = train(model, ours, seed=3), train(other, theirs, seed=3)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert calls == [6] * 6


def test_groups_closures_hooks_and_schedules_are_torch_s(calls: list[int]) -> None:
    torch.optim.Adam(network().parameters())  # a step that is torch's own, hooked before ours
    model, seen = network(), []
    groups = [{"params": model[0].parameters()}, {"params": model[2:].parameters(), "amsgrad": True, "lr": 0.5}]
    adam = fastvae.optim.Adam(groups, lr=1.0)
    adam.register_step_pre_hook(lambda *_: seen.append("before"))
    adam.register_step_post_hook(lambda *_: seen.append("after"))
    schedule = torch.optim.lr_scheduler.StepLR(adam, 1, 0.1)

    def closure() -> Tensor:
        adam.zero_grad()
        loss = model(torch.ones(2, 20)).square().sum()
        loss.backward()
        return loss

    before = copy.deepcopy(model.state_dict())
    loss = adam.step(closure)
    assert isinstance(loss, Tensor)
    schedule.step()
    assert seen == ["before", "after"]
    assert calls == [2]  # the other group is torch's
    assert [group["lr"] for group in adam.param_groups] == pytest.approx([0.1, 0.05])
    # A first step is lr in either direction, where there is a gradient.
    for name, value in model.state_dict().items():
        moved = (value - before[name]).abs()
        expected = 1.0 if name.startswith("0") else 0.5
        assert ((moved - expected).abs()[moved > 0] < 1e-3).all()


class Other(Tensor):
    pass


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"amsgrad": True}, None),
        ({"foreach": True}, None),
        ({"fused": False}, None),
        ({"decoupled_weight_decay": True, "weight_decay": 0.1}, None),
        ({}, lambda model, adam: model.double()),
        ({}, lambda model, adam: setattr(model[0], "bias", nn.Parameter(torch.zeros(33).as_subclass(Other)))),
        ({}, lambda model, adam: setattr(model[0], "weight", nn.Parameter(torch.zeros(20, 66).t()[::2]))),
        ({"fused": True}, lambda model, adam: setattr(adam, "found_inf", torch.zeros(()))),
        ({"fused": True}, lambda model, adam: setattr(adam, "grad_scale", torch.ones(1))),
    ],
)
def test_what_the_operator_does_not_take_is_torch_s(
    options: dict[str, Any], change: Callable[[Any, Any], Any] | None, calls: list[int]
) -> None:
    model = network()
    adam = fastvae.optim.Adam(model.parameters(), **options)
    if change is not None:
        change(model, adam)
        adam.param_groups[0]["params"] = list(model.parameters())
    dtype = model[0].weight.dtype
    before = model[3].bias.detach().clone()
    model(torch.randn(8, 20, dtype=dtype)).square().sum().backward()
    adam.step()
    assert calls == []
    assert not torch.equal(before, model[3].bias)


def test_a_compiled_step_is_torch_s(calls: list[int]) -> None:
    model, other = network(), network()
    ours, theirs = (kind(m.parameters()) for kind, m in ((fastvae.optim.Adam, model), (torch.optim.Adam, other)))
    train(other, theirs, 1)
    torch.manual_seed(2)
    model(torch.randn(8, 20)).square().sum().backward()
    torch.compile(ours.step, backend="eager")()
    assert calls == []
    torch.testing.assert_close(list(model.parameters()), list(other.parameters()))
    assert all(float(state["step"]) == 1 for state in ours.state.values())


def test_a_graph_holds_the_step(device: str) -> None:
    if device != "cuda":
        pytest.skip("of a GPU")
    values = [nn.Parameter(torch.randn(size)) for size in (5, 70_000)]
    grads = [torch.randn_like(v, requires_grad=False) for v in values]
    for value, grad in zip(values, grads, strict=True):
        value.grad = grad
    lr = torch.tensor(1e-3)
    adam, exact = fastvae.optim.Adam(values, lr=lr, capturable=True), Exact(values)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        adam.step()
    torch.cuda.current_stream().wait_stream(side)
    exact.step(grads)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        adam.step()
    for rate in (1e-3, 1e-2, 1e-4):
        lr.fill_(rate)
        exact.adam.param_groups[0]["lr"] = rate
        for grad in grads:
            grad.normal_()
        graph.replay()
        exact.step(grads)
        exact.check(values, [adam.state[v] for v in values])
