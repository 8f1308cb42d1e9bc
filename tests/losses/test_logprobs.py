"""N tokens, V vocabulary, D width."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from goodheart.losses.logprobs import head_logits, token_logprobs

# One tile, whole rows, blocks of columns, columns one by one; 70 and 33 are divisible by none of the blocks.
N, V, D = 70, 33, 5
TILES = [10**6, 64 * V + 1, 64 * 10, 40]
HEADS = [
    {},
    {"temperature": 0.7},
    {"scale": 0.25},
    {"softcap": 2.0},
    {"bias_V": True},
    {"bias_V": True, "scale": 3.0, "softcap": 1.5, "temperature": 1.7},
]


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden_ND = torch.randn(N, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight_VD = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    bias_V = torch.randn(V, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden_ND, weight_VD, bias_V, torch.randint(V, (N,), generator=generator)


def plain(hidden_ND, weight_VD, targets_N, *, bias_V=None, scale=1.0, softcap=None, temperature=1.0):
    """The same in a few lines of autograd, with the whole matrix of logits."""
    logits_NV = hidden_ND @ weight_VD.T
    logits_NV = scale * (logits_NV if bias_V is None else logits_NV + bias_V)
    if softcap is not None:
        logits_NV = softcap * torch.tanh(logits_NV / softcap)
    logp_NV = (logits_NV / temperature).log_softmax(-1)
    return logp_NV.gather(1, targets_N[:, None])[:, 0], -(logp_NV.exp() * logp_NV).sum(-1)


def filled(head: dict, bias_V: Tensor) -> dict:
    return {name: bias_V if name == "bias_V" else value for name, value in head.items()}


def test_one_token_by_hand() -> None:
    # logits = (1, 2, 0); logsumexp = ln(e + e^2 + 1) = ln 11.107338 = 2.407606
    # p = (0.244728, 0.665241, 0.090031); log p[1] = 2 - 2.407606 = -0.407606
    # H = 0.244728 * 1.407606 + 0.665241 * 0.407606 + 0.090031 * 2.407606 = 0.832395
    # d log p[1] / d logits = (-p0, 1 - p1, -p2), times the rows (1,0), (0,1), (0,0) of the head: (-0.244728, 0.334759)
    hidden_ND = torch.tensor([[1.0, 2.0]], requires_grad=True)
    weight_VD = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    logps_N, entropy_N = token_logprobs(hidden_ND, weight_VD, torch.tensor([1]), with_entropy=True)
    torch.testing.assert_close(logps_N, torch.tensor([-0.407606]))
    torch.testing.assert_close(entropy_N, torch.tensor([0.832395]))
    logps_N.sum().backward()
    torch.testing.assert_close(hidden_ND.grad, torch.tensor([[-0.244728, 0.334759]]), atol=1e-6, rtol=1e-5)


def test_temperature_and_softcap_by_hand() -> None:
    # temperature 2: logits (0.5, 1, 0), logsumexp = ln(1.648721 + 2.718282 + 1) = 1.680271; log p[0] = -1.180271
    # softcap 1: tanh (0.761594, 0.964028, 0), logsumexp = ln(2.141688 + 2.622236 + 1) = 1.751619; log p[0] = -0.990025
    hidden_ND, weight_VD = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    tempered_N, _ = token_logprobs(hidden_ND, weight_VD, torch.tensor([0]), temperature=2.0)
    capped_N, _ = token_logprobs(hidden_ND, weight_VD, torch.tensor([0]), softcap=1.0)
    torch.testing.assert_close(tempered_N, torch.tensor([-1.180271]))
    torch.testing.assert_close(capped_N, torch.tensor([-0.990025]))


@pytest.mark.parametrize("max_elements", TILES)
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_any_tiling_equals_the_plain_formula(head: dict, max_elements: int) -> None:
    hidden_ND, weight_VD, bias_V, targets_N = problem()
    kwargs = filled(head, bias_V)
    leaves = [hidden_ND, weight_VD] + ([bias_V] if "bias_V" in kwargs else [])
    got = token_logprobs(hidden_ND, weight_VD, targets_N, with_entropy=True, max_elements=max_elements, **kwargs)
    expected = plain(hidden_ND, weight_VD, targets_N, **kwargs)
    torch.testing.assert_close(got, expected)
    # Unequal weights on tokens, and the entropy with another sign, so that no two mistakes cancel.
    weight_N = torch.linspace(-1, 2, N, dtype=torch.float64)
    grads = [
        torch.autograd.grad((weight_N * logps_N).sum() - 0.3 * (weight_N.flip(0) * entropy_N).sum(), leaves)
        for logps_N, entropy_N in (got, expected)
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("max_elements", [1000, 11, 4])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_gradients_equal_finite_differences(with_entropy: bool, max_elements: int) -> None:
    hidden_ND, weight_VD, bias_V, targets_N = (x[:4].detach() for x in problem())
    targets_N = targets_N % 4

    def both(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor) -> tuple[Tensor, ...]:
        out = token_logprobs(
            hidden_ND, weight_VD, targets_N, bias_V=bias_V, scale=0.7, softcap=2.0, temperature=1.3,
            with_entropy=with_entropy, max_elements=max_elements,
        )  # fmt: skip
        return tuple(x for x in out if x is not None)

    assert torch.autograd.gradcheck(both, [x.requires_grad_() for x in (hidden_ND, weight_VD, bias_V)])


class Recorder(TorchDispatchMode):
    """Records every operation, and the size of every tensor it creates (a view of an older one is not created)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.append(func.name())
        given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in given:
                self.largest = max(self.largest, x.numel())
        return out


@pytest.mark.parametrize(("max_elements", "tiles", "recomputed"), [(N * V, 1, 0), (64 * V, 2, 2), (64 * 10, 8, 8)])
def test_backward_does_no_more_matmuls_than_needed(max_elements: int, tiles: int, recomputed: int) -> None:
    # Logits in one tile are kept, in more they are computed again; then one matmul per tile for each gradient wanted.
    # A frozen head (LoRA) or frozen hidden states save theirs.
    hidden_ND, weight_VD, _, targets_N = problem()
    wanted_N, _ = plain(hidden_ND, weight_VD, targets_N)
    wanted = dict(zip("hw", torch.autograd.grad(wanted_N.sum(), [hidden_ND, weight_VD]), strict=True))
    for trained in ("hw", "h", "w"):
        leaves = {"h": hidden_ND.detach(), "w": weight_VD.detach()}
        for name in trained:
            leaves[name].requires_grad_()
        logps_N, _ = token_logprobs(leaves["h"], leaves["w"], targets_N, max_elements=max_elements)
        with Recorder() as record:
            logps_N.sum().backward()
        matmuls = [call for call in record.calls if call in ("aten::mm", "aten::addmm_")]
        assert len(matmuls) == recomputed + tiles * len(trained)
        for name, leaf in leaves.items():
            assert (leaf.grad is not None) == (name in trained)
            if name in trained:
                torch.testing.assert_close(leaf.grad, wanted[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_elements", [40_000, 10_000])
def test_no_tensor_is_larger_than_a_tile(max_elements: int, dtype: torch.dtype) -> None:
    # 1000 x 500 logits; the largest other tensor is the hidden states, 1000 x 4.
    hidden_ND = torch.randn(1000, 4).to(dtype).requires_grad_()
    weight_VD = torch.randn(500, 4).to(dtype).requires_grad_()
    targets_N = torch.randint(500, (1000,))
    with Recorder() as record:
        logps_N, entropy_N = token_logprobs(
            hidden_ND, weight_VD, targets_N, temperature=0.9, with_entropy=True, max_elements=max_elements
        )
        (logps_N.sum() + entropy_N.sum()).backward()
    assert 4000 < record.largest <= max_elements
    assert weight_VD.grad is not None


def test_gradient_of_a_bfloat16_head_is_summed_in_float32() -> None:
    # 4096 equal tokens, in 64 tiles: the gradient of the head is 4096 times that of one token. Summed in bfloat16
    # (8 bits), the total would stop growing once one tile adds less than 1/256 of it.
    hidden_ND = torch.ones(4096, 1, dtype=torch.bfloat16)
    weight_VD = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    targets_N = torch.zeros(4096, dtype=torch.long)
    logps_N, _ = token_logprobs(hidden_ND, weight_VD, targets_N, max_elements=2)
    logps_N.sum().backward()
    # p = 1/2 each: d log p[0] / d logits = (1/2, -1/2)
    assert logps_N.dtype == torch.float32
    assert weight_VD.grad.dtype == torch.bfloat16
    torch.testing.assert_close(weight_VD.grad.float(), torch.tensor([[2048.0], [-2048.0]]))


def test_gradient_of_bfloat16_hidden_states_is_summed_in_float32() -> None:
    # Uniform over 4096 words, 512 blocks of 8: each adds -8/4096 = -2^-9 to the gradient, -1 in all. Summed in bfloat16
    # it would stop at -1/2, where half a step is 2^-9.
    hidden_ND = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
    weight_VD = torch.ones(4096, 1, dtype=torch.bfloat16)
    weight_VD[0] = 0
    logps_N, _ = token_logprobs(hidden_ND, weight_VD, torch.tensor([0]), max_elements=8)
    logps_N.sum().backward()
    torch.testing.assert_close(hidden_ND.grad.float(), torch.tensor([[-1.0]]), atol=0.005, rtol=0)


def test_bfloat16_normalises_in_float32() -> None:
    hidden_ND, weight_VD, _, targets_N = problem(torch.bfloat16)
    logps_N, entropy_N = token_logprobs(hidden_ND, weight_VD, targets_N, with_entropy=True)
    logits_NV = (hidden_ND @ weight_VD.T).float()  # rounded once, by the matmul
    expected_NV = logits_NV.log_softmax(-1)
    torch.testing.assert_close(logps_N, expected_NV.gather(1, targets_N[:, None])[:, 0])
    torch.testing.assert_close(entropy_N, -(expected_NV.exp() * expected_NV).sum(-1))


def test_huge_logits_neither_overflow_nor_lose_the_choice() -> None:
    hidden_ND, weight_VD = torch.tensor([[1000.0]]), torch.tensor([[1.0], [-1.0], [0.999]])
    for max_elements in (10, 1):
        logps_N, entropy_N = token_logprobs(
            hidden_ND.expand(3, 1), weight_VD, torch.tensor([0, 1, 2]), with_entropy=True, max_elements=max_elements
        )
        # logits 1000, -1000, 999: log p = -ln(1 + 1/e) = -0.313262, -2000.313262, -1.313262
        torch.testing.assert_close(logps_N, torch.tensor([-0.313262, -2000.313262, -1.313262]), atol=1e-4, rtol=0)
        # p = 0.731059, 0, 0.268941: H = 0.731059 * 0.313262 + 0.268941 * 1.313262 = 0.582203
        torch.testing.assert_close(entropy_N, torch.full((3,), 0.582203), atol=1e-3, rtol=0)


def test_without_gradient_nothing_is_kept() -> None:
    hidden_ND, weight_VD, _, targets_N = problem()
    with torch.no_grad():
        quiet_N, _ = token_logprobs(hidden_ND, weight_VD, targets_N)
    logps_N, entropy_N = token_logprobs(hidden_ND, weight_VD, targets_N)
    assert entropy_N is None
    assert not quiet_N.requires_grad
    torch.testing.assert_close(quiet_N, logps_N.detach(), atol=0, rtol=0)
    frozen_N, _ = token_logprobs(hidden_ND.detach(), weight_VD.detach(), targets_N)
    assert frozen_N.grad_fn is None


def test_second_derivatives_are_refused() -> None:
    hidden_ND, weight_VD, _, targets_N = problem()
    logps_N, _ = token_logprobs(hidden_ND, weight_VD, targets_N)
    (grad_ND,) = torch.autograd.grad(logps_N.square().sum(), hidden_ND, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad_ND.sum().backward()


def test_no_tokens_give_zero_gradients_not_none() -> None:
    # Every process must take part in the sum of gradients, with or without tokens of its own.
    hidden_ND, weight_VD, _, targets_N = problem()
    logps_N, entropy_N = token_logprobs(hidden_ND[:0], weight_VD, targets_N[:0], with_entropy=True)
    assert logps_N.shape == entropy_N.shape == (0,)
    (logps_N.sum() + entropy_N.sum()).backward()
    assert weight_VD.grad is not None
    assert not weight_VD.grad.any()


def test_autocast_runs_the_matmul_in_its_dtype() -> None:
    hidden_ND, weight_VD, _, targets_N = problem(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps_N, _ = token_logprobs(hidden_ND, weight_VD, targets_N)
    expected_N, _ = token_logprobs(hidden_ND.bfloat16(), weight_VD.bfloat16(), targets_N)
    torch.testing.assert_close(logps_N, expected_N, atol=0, rtol=0)
    logps_N.sum().backward()
    assert weight_VD.grad.dtype == torch.float32


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_sampler_logits_give_the_same_log_probabilities(head: dict) -> None:
    hidden_ND, weight_VD, bias_V, targets_N = (x.detach() for x in problem(torch.float32))
    kwargs = filled(head, bias_V)
    logits_NV = head_logits(hidden_ND, weight_VD, **kwargs)
    logps_N, _ = token_logprobs(hidden_ND, weight_VD, targets_N, **kwargs)
    torch.testing.assert_close(logits_NV.log_softmax(-1).gather(1, targets_N[:, None])[:, 0], logps_N)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"targets_N": torch.full((N,), -100)}, r"\[0, 33\); got -100"),
        ({"targets_N": torch.full((N,), V)}, r"\[0, 33\); got 33"),
        ({"targets_N": torch.zeros(N - 1, dtype=torch.long)}, "targets"),
        ({"weight_VD": torch.zeros(V, D + 1)}, "weight"),
        ({"bias_V": torch.zeros(V - 1)}, "bias"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"softcap": 0.0}, "softcap=0.0"),
        ({"max_elements": 0}, "max_elements=0"),
    ],
)
def test_bad_arguments_are_named(change: dict, words: str) -> None:
    hidden_ND, weight_VD, _, targets_N = problem()
    arguments = {"hidden_ND": hidden_ND, "weight_VD": weight_VD, "targets_N": targets_N} | change
    with pytest.raises(ValueError, match=words):
        token_logprobs(**arguments)
