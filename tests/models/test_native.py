"""The parts in C beside PyTorch in float64: norms, gates and the softmax of the output layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from goodheart.losses.logprobs import token_logprobs
from goodheart.models import build, native
from goodheart.models.elementwise import add_and_norm, joint_silu_gate

pytestmark = pytest.mark.skipif(build.load(native.CODES[torch.float32]) is None, reason="no C compiler")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_exact(ours: Tensor, exact: Tensor) -> None:
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=2e-6 * float(exact.abs().max()))


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 15), (64, 16), (65, 33), (200, 128)])
def test_sum_and_norm(rows: int, width: int) -> None:
    given = drawn(rows, width), drawn(rows, width, seed=1), drawn(width, seed=2)
    slopes = drawn(rows, width, seed=3), drawn(rows, width, seed=4)
    ours = [x.clone().requires_grad_() for x in given]
    exact = [x.double().requires_grad_() for x in given]
    found = add_and_norm(ours[0], ours[1], ours[2], 1e-5)
    both = exact[0] + exact[1]
    wanted = both, F.rms_norm(both, (width,), exact[2], 1e-5)
    for one, other in zip(found, wanted, strict=True):
        assert_exact(one.detach(), other.detach())
    sum(((x * s).sum() for x, s in zip(found, slopes, strict=True)), torch.zeros(())).backward()
    sum(((x * s).sum() for x, s in zip(wanted, slopes, strict=True)), torch.zeros(())).backward()
    for one, other in zip(ours, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert_exact(one.grad, other.grad)


@pytest.mark.parametrize(("rows", "width"), [(3, 15), (65, 33), (200, 128)])
def test_bfloat16_is_computed_in_float32_and_rounded_once(rows: int, width: int) -> None:
    x, more, weight = (drawn(*shape, seed=i).bfloat16() for i, shape in enumerate([(rows, width)] * 2 + [(width,)]))
    slopes = drawn(rows, width, seed=3).bfloat16(), drawn(rows, width, seed=4).bfloat16()

    found = native.norm(x, more, weight, 1e-5)
    both = (x.float() + more.float()).bfloat16()  # as it is stored, and as backward will read it
    wanted = native.norm(both.float(), None, weight.float(), 1e-5)
    assert torch.equal(found[0], both)
    assert torch.equal(found[1], wanted[1].bfloat16())
    assert torch.equal(found[2], wanted[2])

    found_back = native.norm_backward(both, weight, found[2], *slopes)
    wanted_back = native.norm_backward(both.float(), weight.float(), found[2], *(s.float() for s in slopes))
    for one, other in zip(found_back, wanted_back, strict=True):
        assert torch.equal(one, other.bfloat16())

    gate_up = torch.cat([x, more], dim=1)
    assert torch.equal(native.gate(gate_up), native.gate(gate_up.float()).bfloat16())
    grad = native.gate_backward(gate_up, slopes[0])
    assert torch.equal(grad, native.gate_backward(gate_up.float(), slopes[0].float()).bfloat16())


def test_bfloat16_rounds_ties_to_even_and_keeps_what_is_no_number() -> None:
    # 1 + 2^-8 lies between 1 and 1 + 2^-7, of which 1 is even; 1 + 3 x 2^-8 between 1 + 2^-7 and 1 + 2^-6.
    x = torch.tensor([[1.0, 1.0, torch.inf, torch.nan]]).bfloat16()
    more = torch.tensor([[2**-8, 3 * 2**-8, 1.0, 1.0]]).bfloat16()
    found = native.norm(x, more, torch.ones(4).bfloat16(), 1e-5)[0][0]
    torch.testing.assert_close(found.float(), torch.tensor([1.0, 1 + 2**-6, torch.inf, torch.nan]), equal_nan=True)


def test_a_sum_that_only_one_of_its_two_results_is_used_of() -> None:
    for used in (0, 1):
        x, more, weight = (drawn(4, 8, seed=i).requires_grad_() for i in range(3))
        weight = weight[0].detach().requires_grad_()
        add_and_norm(x, more, weight, 1e-5)[used].sum().backward()
        assert x.grad is not None
        assert more.grad is not None
        assert torch.equal(x.grad, more.grad)
        if used == 0:
            assert torch.equal(x.grad, torch.ones(4, 8))


@pytest.mark.parametrize("width", [1, 16, 37])
def test_joint_gate(width: int) -> None:
    given, slope = drawn(70, 2 * width) * 5, drawn(70, width, seed=1)
    ours, exact = given.clone().requires_grad_(), given.double().requires_grad_()
    found, wanted = joint_silu_gate(ours), F.silu(exact[:, :width]) * exact[:, width:]
    assert_exact(found.detach(), wanted.detach())
    (found * slope).sum().backward()
    (wanted * slope).sum().backward()
    assert ours.grad is not None
    assert exact.grad is not None
    assert_exact(ours.grad, exact.grad)


@pytest.mark.parametrize("size", [90.0, 200.0, 1e30])
def test_gates_far_out_are_finite(size: float) -> None:
    gate_up = torch.tensor([[-size, 0.0, size, 1.0, 1.0, 1.0]], requires_grad=True)
    joint_silu_gate(gate_up).sum().backward()
    assert gate_up.grad is not None
    assert gate_up.grad.isfinite().all()
    torch.testing.assert_close(gate_up.grad[0, :3], torch.tensor([0.0, 0.5, 1.0]))


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}, {"softcap": 3.0, "scale": 0.5}], ids=str)
@pytest.mark.parametrize("max_elements", [2**24, 64 * 1100])  # kept for backward, and computed again
def test_logprobs_and_entropies(settings: dict[str, float], max_elements: int) -> None:
    tokens, vocabulary = 700, 1100  # three tiles
    hidden, weight, bias = drawn(tokens, 24), drawn(vocabulary, 24, seed=1), drawn(vocabulary, seed=2)
    targets = torch.randint(vocabulary, (tokens,), generator=torch.Generator().manual_seed(3))
    slopes = drawn(2, tokens, seed=4)
    results = []
    for x in (torch.float32, torch.float64):
        inputs = [t.to(x, copy=True).requires_grad_() for t in (hidden, weight, bias)]
        logps, entropy = token_logprobs(
            inputs[0],
            inputs[1],
            targets,
            bias_V=inputs[2],
            with_entropy=True,
            softmax=native,
            max_elements=max_elements,
            **settings,
        )
        assert entropy is not None
        (logps * slopes[0] + entropy * slopes[1]).sum().backward()
        results.append([logps.detach(), entropy.detach(), *(t.grad for t in inputs)])
    for one, other in zip(*results, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-5, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
def test_gradients_that_are_one_number_and_targets_with_gaps(used: tuple[int, ...]) -> None:
    targets = torch.randint(9, (5, 2), generator=torch.Generator().manual_seed(3))[:, 0]
    found = []
    for softmax in (native, None):
        hidden, weight = drawn(5, 8).requires_grad_(), drawn(9, 8, seed=1)
        results = token_logprobs(hidden, weight, targets, with_entropy=True, softmax=softmax)
        for chosen in used:
            results[chosen].sum().backward(retain_graph=True)
        assert hidden.grad is not None
        found.append(hidden.grad)
    torch.testing.assert_close(*found)


def test_what_the_c_code_would_misread_is_refused() -> None:
    logits, targets = drawn(2, 6), torch.tensor([0, 1])
    for bad in (logits.double(), logits.t(), logits[:, ::2]):
        with pytest.raises(TypeError, match="logits: the C code reads contiguous"):
            native.softmax(bad, targets, with_entropy=False)
    with pytest.raises(TypeError, match=r"targets: .* torch\.int32"):
        native.softmax(logits, targets.int(), with_entropy=False)


def test_logprobs_that_are_certain_or_impossible() -> None:
    logits = torch.tensor([[0.0, -200.0, -200.0], [-torch.inf, 1.0, 1.0]])
    logps, log_sum, entropy = native.softmax(logits, torch.tensor([0, 1]), with_entropy=True)
    torch.testing.assert_close(logps, torch.tensor([0.0, -0.6931472]))
    torch.testing.assert_close(entropy, torch.tensor([0.0, 0.6931472]))
    ones = torch.ones(2)
    grad = native.softmax_backward(logits, torch.tensor([0, 1]), log_sum, entropy, ones, ones)
    torch.testing.assert_close(grad, torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.5, -0.5]]))


def test_what_is_not_a_number_is_not_hidden() -> None:
    bad = torch.tensor([[0.0, torch.nan, 1.0]])
    assert native.softmax(bad, torch.tensor([0]), with_entropy=False)[0].isnan().all()
    assert native.norm(bad, None, torch.ones(3), 1e-5)[1].isnan().all()
    assert native.gate(bad.repeat(1, 2))[0, 1].isnan()


def test_switched_off_everything_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOODHEART_NATIVE", "0")
    assert build.load.__wrapped__(native.CODES[torch.float32]) is None
    monkeypatch.setattr(build, "load", build.load.__wrapped__)
    assert not native.takes(torch.ones(2))


def test_other_kinds_of_tensors_are_left_to_pytorch() -> None:
    assert native.takes(torch.ones(2), torch.nn.Parameter(torch.ones(2)))
    assert native.takes(torch.ones(2, dtype=torch.bfloat16))
    assert not native.takes(torch.ones(2), torch.ones(2, dtype=torch.bfloat16))
    assert not native.takes(torch.ones(2, dtype=torch.float16))
    assert not native.takes(torch.ones(2, device="meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not native.takes(torch.ones(2))
