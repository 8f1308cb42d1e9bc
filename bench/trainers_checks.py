"""Whether goodheart and TRL did the same work, by what each process reported about itself."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.race import Results, Run
from bench.trainers_job import LEARNS_FROM, OFFLINE, Settings

_SMALL = 1e-4  # of GRPO's standard deviation, added before dividing by it


@dataclass(frozen=True)
class Check:
    """One thing that must be equal."""

    fine: bool
    text: str

    def __str__(self) -> str:
        return f"{'same' if self.fine else 'NOT THE SAME'}: {self.text}"


def same_work(results: Results, job: Settings) -> Iterator[Check]:
    """Everything compared, peer by peer."""
    ours = results["goodheart"]
    for peer, theirs in results.items():
        if peer == "goodheart":
            continue
        apart = _apart(theirs[0]["fixed_logps"], ours[0]["fixed_logps"])
        yield Check(apart < 1e-3, f"{peer}: log-probabilities of 8 fixed rows, largest difference {apart:.1e}")
        moved = statistics.median(run["weight_change"] for run in ours) / statistics.median(
            run["weight_change"] for run in theirs
        )
        yield Check(0.8 < moved < 1.25, f"{peer}: weights moved {moved:.3f} times as far as TRL's")
        yield from (_offline if job.task in OFFLINE else _sampled)(peer, theirs, ours, job)


def _offline(peer: str, theirs: list[Run], ours: list[Run], job: Settings) -> Iterator[Check]:
    """The same rows at every step, so every loss must agree, with what training has done to the weights in between."""
    counts = {len(run["losses"]) for run in [*theirs, *ours]}
    yield Check(counts == {job.steps}, f"{peer}: {job.steps} losses on both sides")
    first, last = ([run["losses"][place] for run in (theirs[0], ours[0])] for place in (0, -1))
    yield Check(
        abs(first[0] - first[1]) < 2e-6 * max(1, abs(first[0])),
        f"{peer}: first loss {first[0]:.7f}, goodheart {first[1]:.7f}",
    )
    apart = _apart(theirs[0]["losses"], ours[0]["losses"])
    text = f"{peer}: last loss {last[0]:.6f}, goodheart {last[1]:.6f}; largest difference of all steps {apart:.1e}"
    yield Check(apart < 1e-3, text)
    if job.task == "kto":
        apart = _apart(theirs[0]["baseline"], ours[0]["baseline"])
        highest = max(ours[0]["baseline"])
        yield Check(apart < 1e-3, f"{peer}: KTO's baseline, up to {highest:.3f} nats; largest difference {apart:.1e}")
    share = statistics.median(theirs[0]["positions"]) / statistics.median(ours[0]["positions"])
    times = _forwards(peer, job.task)
    spared = times * _spared(job)
    yield Check(
        math.isclose(share, times, rel_tol=0.02) or math.isclose(share, spared, rel_tol=0.1),
        f"{peer}: positions through models per step {share:.3f} times goodheart's (by design {times:.0f}, or about "
        f"{spared:.2f} where it leaves out padding and passes once over what two answers share)",
    )


def _spared(job: Settings) -> float:
    """Positions with padding over those without, and with the prompt of a pair only once, for lengths as drawn."""
    answer, longest = (job.least_new_tokens + job.new_tokens) / 2, job.prompt_tokens + job.new_tokens
    if LEARNS_FROM[job.task] == "pairs":
        return 2 * longest / (job.prompt_tokens + 2 * answer)
    return longest / (job.prompt_tokens + answer)


def _forwards(peer: str, task: str) -> float:
    """A reference that is asked at every step doubles the passes."""
    return 2.0 if task in ("dpo", "kto") and peer == "TRL" else 1.0


def _sampled(peer: str, theirs: list[Run], ours: list[Run], job: Settings) -> Iterator[Check]:
    """Samplers draw different answers: compared is how many tokens, and what each side makes of its own rewards."""
    tokens = [job.batch_size * job.new_tokens] * job.steps
    yield Check(
        all(run["new_tokens"] == tokens for run in [*theirs, *ours]),
        f"{peer}: {tokens[0]} tokens sampled in every step",
    )
    for name, runs in ((peer, theirs), ("goodheart", ours)):
        apart = max(_apart(run["advantages"], wanted_advantages(run["rewards"], job)) for run in runs)
        yield Check(
            apart < 1e-4, f"{name}: first step's advantages as the method defines them from the rewards, {apart:.1e}"
        )
    means = [statistics.mean(statistics.mean(run["rewards"]) for run in runs) for runs in (theirs, ours)]
    yield Check(
        abs(means[0] - means[1]) < 0.08, f"{peer}: first step's mean reward {means[0]:.3f}, goodheart {means[1]:.3f}"
    )


def wanted_advantages(rewards: Sequence[float], job: Settings) -> list[float]:
    """From rewards laid out group after group: above the group's mean in its deviations (grpo), or above the others'
    mean (rloo; the KL taken off the reward is 0 at the first step).
    """
    found = []
    for start in range(0, len(rewards), job.num_generations):
        group = rewards[start : start + job.num_generations]
        mean, size = statistics.mean(group), len(group)
        if job.task == "grpo":
            found += [(reward - mean) / (statistics.stdev(group) + _SMALL) for reward in group]
        else:
            found += [(reward - mean) * size / (size - 1) for reward in group]
    return found


def _apart(x: Sequence[float], y: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(x, y, strict=True))
