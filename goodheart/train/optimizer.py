"""AdamW with float32 master weights, learning-rate schedules and gradient clipping.

torch's own optimizer class imports the compiler on first use, which costs two seconds of every command; the arithmetic
here is torch's fused kernel, called directly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from goodheart.errors import ConfigError, HealthError
from goodheart.train.config import TrainingSettings
from goodheart.train.parallel import World, is_sharded, local


@dataclass
class ParamGroup:
    """Parameters that share a learning rate and a weight decay."""

    learning_rate: float
    weight_decay: float
    names: list[str] = field(default_factory=list)
    params: list[nn.Parameter] = field(default_factory=list)


class AdamW:
    """Decoupled weight decay Adam (arXiv:1711.05101, algorithm 2), over groups of named parameters.

    Parameters narrower than float32 get a float32 master copy that is updated and rounded back, and their `.grad` is
    gathered in float32 over micro-batches. A parameter without a gradient is skipped, its step count too.
    """

    def __init__(
        self,
        groups: list[ParamGroup],
        *,
        betas: tuple[float, float],
        eps: float,
        master_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.groups = [group for group in groups if group.params]
        self.betas, self.eps = betas, eps
        self.learning_rate = max((group.learning_rate for group in self.groups), default=0.0)
        self._state = {
            name: _State(param, master_dtype)
            for group in self.groups
            for name, param in zip(group.names, group.params, strict=True)
        }

    @property
    def params(self) -> list[nn.Parameter]:
        """Every parameter that is trained."""
        return [param for group in self.groups for param in group.params]

    @torch.no_grad()
    def step(self, learning_rate: float | None = None) -> None:
        """One update from the gradients in `.grad`.

        Args:
            learning_rate: rate of this step for the group with the highest rate; the others keep their proportion.
                None = the rate given at construction.
        """
        scale = 1.0 if learning_rate is None else learning_rate / self.learning_rate
        for group in self.groups:
            ready = [
                (param, self._state[name])
                for name, param in zip(group.names, group.params, strict=True)
                if param.grad is not None
            ]
            if ready:
                self._update(ready, group.learning_rate * scale, group.weight_decay)

    def zero_grad(self) -> None:
        """Drops all gradients."""
        for param in self.params:
            param.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Every tensor that a resumed run needs, by name; the live tensors, not copies."""
        return {f"{kind}/{name}": t for name, state in self._state.items() for kind, t in state.tensors().items()}

    def _update(self, ready: list[tuple[nn.Parameter, _State]], rate: float, weight_decay: float) -> None:
        weights = [local(state.weight) for _, state in ready]
        grads = [local(param.grad).to(weight.dtype) for (param, _), weight in zip(ready, weights, strict=True)]  # type: ignore[arg-type]
        steps = [state.step for _, state in ready]
        torch._foreach_add_(steps, 1.0)
        torch._fused_adamw_(
            weights,
            grads,
            [local(state.exp_avg) for _, state in ready],
            [local(state.exp_avg_sq) for _, state in ready],
            [],
            steps,
            lr=rate,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=weight_decay,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )
        narrow = [(local(param), local(state.master)) for param, state in ready if state.master is not None]
        if narrow:
            torch._foreach_copy_([param for param, _ in narrow], [master for _, master in narrow])


class _State:
    """Moments, step count and (for narrow dtypes) master copy of one parameter."""

    def __init__(self, param: nn.Parameter, master_dtype: torch.dtype) -> None:
        wide = torch.promote_types(param.dtype, master_dtype)
        self.master = param.detach().to(wide, copy=True) if wide != param.dtype else None
        if self.master is not None and not is_sharded(param):
            param.grad_dtype = wide
        self.weight: Tensor = param.detach() if self.master is None else self.master
        self.exp_avg = torch.zeros_like(self.weight)
        self.exp_avg_sq = torch.zeros_like(self.weight)
        self.step = torch.zeros((), dtype=torch.float32, device=param.device)

    def tensors(self) -> dict[str, Tensor]:
        master = {} if self.master is None else {"master": self.master}
        return {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq, "step": self.step, **master}


def build_optimizer(
    named_params: Iterable[tuple[str, nn.Parameter]],
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    master_dtype: torch.dtype = torch.float32,
    learning_rates: Mapping[str, float] | None = None,
) -> AdamW:
    """AdamW over the parameters that require a gradient; frozen ones cost nothing. Call it after `World.prepare` and,
    with fsdp, before any forward pass.

    Matrices (two dimensions or more, embeddings and LoRA factors among them) decay; vectors (norm scales, biases) do
    not. That is what `transformers` does too.

    Args:
        named_params: `model.named_parameters()`; one tensor under two names is taken once.
        learning_rate: peak rate.
        weight_decay: decoupled, multiplied by the rate at each step; 0 = off.
        betas, eps: decay of the two moments, and what is added to the root of the second.
        master_dtype: narrower parameters are updated in this dtype.
        learning_rates: name prefix -> rate of its own, for example `{"value_head.": 1e-4}`; the longest prefix wins.

    Raises:
        ConfigError: nothing to train, or a prefix that fits no parameter.
        RuntimeError: fsdp's weights are whole, because a pass came first.
    """
    rates = dict(learning_rates or {})
    unused, seen = set(rates), set()
    groups: dict[tuple[float, float], ParamGroup] = {}
    for name, param in named_params:
        if not param.requires_grad or id(param) in seen:
            continue
        seen.add(id(param))
        prefix = max((p for p in rates if name.startswith(p)), key=len, default=None)
        unused.discard(prefix or "")
        decay = weight_decay if param.dim() >= 2 else 0.0
        rate = learning_rate if prefix is None else rates[prefix]
        group = groups.setdefault((rate, decay), ParamGroup(rate, decay))
        group.names.append(name)
        group.params.append(param)
    if not groups:
        raise ConfigError("nothing to train: no parameter requires a gradient (are all weights frozen?)")
    _refuse_whole(groups.values())
    if unused:
        raise ConfigError(f"learning_rates: no trained parameter starts with {', '.join(sorted(unused))}")
    return AdamW(list(groups.values()), betas=betas, eps=eps, master_dtype=master_dtype)


def optimizer_for(
    named_params: Iterable[tuple[str, nn.Parameter]],
    config: TrainingSettings,
    learning_rates: Mapping[str, float] | None = None,
) -> AdamW:
    """`build_optimizer` with what a stage's settings say."""
    return build_optimizer(
        named_params,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=config.adam_betas,
        eps=config.adam_eps,
        learning_rates=learning_rates,
    )


def _refuse_whole(groups: Iterable[ParamGroup]) -> None:
    """Between a forward pass and its backward pass a module holds whole copies of fsdp's weights; an optimizer over
    those would train copies that nobody reads again, and no error would tell.
    """
    if not World.current().sharded:
        return
    whole = [name for g in groups for name, param in zip(g.names, g.params, strict=True) if not is_sharded(param)]
    if whole:
        raise RuntimeError(
            f"{whole[0]}{f' and {len(whole) - 1} more weights are' if whole[1:] else ' is'} whole, not fsdp's piece: "
            "call build_optimizer before any forward pass of the model"
        )


def resolve_dtype(name: str, device: torch.device | str) -> torch.dtype:
    """The dtype that weights are computed in: auto is float32 on CPU, where results must repeat, and bfloat16 on a GPU.

    Raises:
        ConfigError: an unknown name.
    """
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    kinds["auto"] = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    if name not in kinds:
        raise ConfigError(f"dtype {name!r} is not known; use one of {', '.join(sorted(kinds))}")
    return kinds[name]


def _linear(progress: float) -> float:
    return 1.0 - progress


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _constant(progress: float) -> float:
    return 1.0


# Share of the peak left after `progress` (0 to 1) of the steps that follow the warm-up.
SCHEDULES: dict[str, Callable[[float], float]] = {"linear": _linear, "cosine": _cosine, "constant": _constant}


def lr_at(step: int, total: int, *, warmup_steps: int = 0, schedule: str = "linear", min_ratio: float = 0.0) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then the schedule down to `min_ratio`.

    Step 0 of a warm-up of W steps has 1/W of the peak (not 0, which would waste the step), step W-1 the whole peak.

    Args:
        step: steps done before this one, 0 to total-1.
        total: steps of the whole run.
        warmup_steps: length of the warm-up; 0 = none.
        schedule: a key of `SCHEDULES`.
        min_ratio: share of the peak that the schedule ends on.

    Returns:
        A share between 0 and 1, to be multiplied with the peak learning rate.

    Raises:
        ConfigError: unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ConfigError(f"schedule {schedule!r} is not known; use one of {', '.join(sorted(SCHEDULES))}")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total - warmup_steps)
    return min_ratio + (1.0 - min_ratio) * SCHEDULES[schedule](min(1.0, progress))


@torch.no_grad()
def clip_grad_norm(
    params: Iterable[nn.Parameter], max_norm: float | None, world: World, *, step: int | None = None
) -> float:
    """Scales all gradients so that their joint 2-norm is at most `max_norm`.

    Args:
        params: parameters with `.grad` already summed over processes (`World.sync_gradients`); FSDP pieces are fine.
        max_norm: None = measure only.
        world: the processes.
        step: for the error message.

    Returns:
        The norm before clipping.

    Raises:
        HealthError: the norm is NaN or infinite; nothing has been changed.
    """
    with_grad = [p for p in params if p.grad is not None]
    whole = [local(p.grad) for p in with_grad if p.grad is not None and not is_sharded(p)]
    pieces = [local(p.grad) for p in with_grad if p.grad is not None and is_sharded(p)]
    square = _sum_of_squares(whole)
    if world.size > 1:
        square += world.sum(_sum_of_squares(pieces))
    norm = math.sqrt(square) if math.isfinite(square) else square
    if not math.isfinite(norm):
        where = "" if step is None else f"step {step}: "
        raise HealthError(
            f"{where}the gradient norm is {norm}, so the update was not made. Lower learning_rate or max_grad_norm, or "
            "use dtype float32, and start again under another --out."
        )
    if max_norm is not None and norm > max_norm:
        # torch's own clipping adds the same 1e-6, so that results can be compared with it.
        torch._foreach_mul_(whole + pieces, max_norm / (norm + 1e-6))
    return norm


def _sum_of_squares(grads: list[Tensor]) -> float:
    if not grads:
        return 0.0
    return float(torch.stack(torch._foreach_norm(grads, 2.0, dtype=torch.float32)).double().square().sum())
