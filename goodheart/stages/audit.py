"""The Goodhart guard of a stage that optimises a judge: at intervals another judge, never trained on, is asked.

A measure that is optimised stops being a good one (Goodhart). So every `every` steps the policy answers the same
prompts with the same random numbers, the audit judge and the judge trained on both score the answers, and
`judges/goodhart.py` tells whether the audit has turned down. The weights of the best look are kept in
`best/`.

Looks go to `audit.jsonl` of the run folder: step, kl (nats per answer), audit, audit_error, proxy, kept.

Letters: B answers, T time (tokens).
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch

from goodheart.data.batches import Example, micro_batches, pad
from goodheart.data.records import Answer, Prompt
from goodheart.errors import ConfigError, DataError, HealthError, RunError
from goodheart.generate.engine import Generation
from goodheart.judges.goodhart import Guard
from goodheart.judges.load import load_judge
from goodheart.models.causal import CausalLM, completion_logprobs
from goodheart.stages.settings.audit import AuditSettings
from goodheart.stages.settings.sampling import SamplingSettings
from goodheart.stages.writer import Writer
from goodheart.train.config import TrainingSettings
from goodheart.train.files import replace_text
from goodheart.train.optimizer import resolve_dtype
from goodheart.train.policy import save_policy
from goodheart.train.session import Session

# Random numbers of the audit's answers: far from those of any training step, the same at every look.
_SEED = 1_000_000_007
# Prompts with an opinion below which no look is worth anything.
_FEWEST = 2


class Proxy(Protocol):
    """Scores as they are optimised: (prompts, answers, generations) -> one number each, None = no opinion."""

    def __call__(
        self, prompts: Sequence[Prompt], answers: Sequence[Answer], generations: Sequence[Generation], /
    ) -> list[float | None]: ...


class Reference(Protocol):
    """Gives the model that the KL is measured against inside a `with`."""

    def __call__(self) -> AbstractContextManager[CausalLM]: ...


class Audit:
    """Looks at a policy in training; part of the session's state, so that a resumed run knows what was seen.

    Args:
        settings: with a judge.
        config: of the stage. sampling: how it samples.
        policy, reference, writer: of the stage. proxy: the scores it optimises.
        asked: prompts with their tokens, of which `settings.count` are drawn.

    Raises:
        ConfigError: no judge, or one that cannot be loaded.
    """

    def __init__(
        self,
        settings: AuditSettings,
        config: TrainingSettings,
        sampling: SamplingSettings,
        session: Session,
        *,
        policy: CausalLM,
        reference: Reference,
        writer: Writer,
        proxy: Proxy,
        asked: Sequence[tuple[Prompt, list[int]]],
    ) -> None:
        if settings.judge is None:
            raise ConfigError("audit.judge is missing: a judge that the policy is not trained on")
        self.settings, self.config, self.sampling, self.session = settings, config, sampling, session
        self.policy, self.reference, self.writer, self.proxy = policy, reference, writer, proxy
        dtype = resolve_dtype(config.dtype, session.device)
        self.judge = load_judge(settings.judge, dtype=dtype, device=session.device, max_tokens=config.max_tokens)
        generator = torch.Generator().manual_seed(config.seed + _SEED)
        places = torch.randperm(len(asked), generator=generator).tolist()[: settings.count]
        self.asked = [asked[i] for i in places for _ in range(settings.answers)]
        self.guard = Guard(false_alarms=settings.false_alarms, tolerance=settings.tolerance)
        self._checkpointed: int | None = None  # step of the best look that the newest checkpoint knows
        session.state.add("audit", self)

    def due(self, step: int, total: int) -> bool:
        """Whether the policy is looked at after so many of all steps."""
        return step == total or step % self.settings.every == 0

    def look(self, step: int) -> dict[str, float]:
        """Asks both judges about fresh answers, keeps the weights if they are the best so far, and ends the run where
        the audit has turned down. -> what is worth logging
        """
        found = self._measure()
        audits = [row[0] for row in found]
        per_prompt = _means(audits, self.settings.answers)
        known = [mean for mean in per_prompt if mean is not None]
        if len(known) < _FEWEST:
            raise DataError(
                f"audit {self.settings.judge}: an opinion on {len(known)} of {len(per_prompt)} prompts, which "
                "tells nothing: raise audit.count or give other audit.prompts"
            )
        proxies = [row[1] for row in found if row[1] is not None]
        kl = statistics.fmean(row[2] for row in found)
        if not math.isfinite(kl):
            raise HealthError(
                f"audit after step {step}: the KL of its answers is {kl}; the policy's weights are broken"
            )
        warned = self.guard.alarm
        best = self.guard.add(
            step,
            kl,
            statistics.fmean(known),
            statistics.stdev(known) / math.sqrt(len(known)),
            statistics.fmean(proxies) if proxies else 0.0,
            per_prompt,
        )
        if best and self.settings.keep:
            self._keep(step)
        self._write()
        if self.guard.alarm is not None and warned is None:
            self._act(step)
        last = self.guard.looks[-1]
        return {"audit/score": last.audit, "audit/error": last.error, "audit/proxy": last.proxy, "audit/kl": last.kl}

    def keep_best(self, folder: Path) -> bool:
        """Puts the kept model into the result's folder; False where the last one is the result.

        Raises:
            RunError: it is not there any more.
        """
        best = self.guard.best
        if not self.settings.keep or best is None:
            return False
        kept, missing = self._folder(best.step), False
        if self.session.world.is_main:
            missing = not kept.is_dir()
            if not missing:
                shutil.copytree(kept, folder, dirs_exist_ok=True)
        if self.session.world.broadcast_object(missing):
            raise RunError(f"{kept}: the best model is gone; start again under another --out")
        return True

    def summary(self) -> dict[str, Any]:
        """For results.json: what was kept, and the fitted law of overoptimisation."""
        first, best, last = self.guard.looks[0], self.guard.best, self.guard.looks[-1]
        assert best is not None
        law = self.guard.law()
        return {
            "judge": self.settings.judge,
            "looks": len(self.guard.looks),
            "start_audit": first.audit,
            "best_audit": best.audit,
            "best_step": best.step,
            "last_audit": last.audit,
            "last_step": last.step,
            "kept_step": best.step if self.settings.keep else last.step,
            "turned_down": self.guard.alarm,
        } | ({} if law is None else law.as_dict())

    def state_dict(self) -> dict[str, Any]:
        self._checkpointed = None if self.guard.best is None else self.guard.best.step
        return self.guard.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.guard.load_state_dict(state)
        self._checkpointed = None if self.guard.best is None else self.guard.best.step

    def _keep(self, step: int) -> None:
        """Saves the policy as the best so far. What the newest checkpoint calls the best stays beside it: after a crash
        the run falls back to that one.
        """
        with self.session.model_folder(str(self._folder(step).relative_to(self.session.run.path))) as folder:
            save_policy(self.policy, self.writer.template, folder, self.session)
        needed = {self._folder(s) for s in (step, self._checkpointed) if s is not None}
        if self.session.world.is_main:
            for old in self._folder(step).parent.iterdir():
                if old not in needed:
                    shutil.rmtree(old, ignore_errors=True)

    def _folder(self, step: int) -> Path:
        return self.session.run.path / "best" / f"step-{step}"

    def _measure(self) -> list[tuple[float | None, float | None, float]]:
        """Audit score, proxy score and KL of every answer; each process answers its share."""
        world = self.session.world
        mine = world.shard(list(range(len(self.asked))))
        prompts = [self.asked[i][0] for i in mine]
        made = self.writer.generate(
            [self.asked[i][1] for i in mine], self.sampling, seed=self.config.seed + _SEED, sequence_ids=mine
        )
        answers = [self.writer.answer(p, g, self.sampling.stop) for p, g in zip(prompts, made, strict=True)]
        audits = self.judge.score(prompts, answers) if prompts else []
        rows = list(zip(audits, self.proxy(prompts, answers, made) if prompts else [], self._kl(made), strict=True))
        found = {i: row for part in world.gather_objects(list(zip(mine, rows, strict=True))) for i, row in part}
        return [found[i] for i in range(len(self.asked))]

    @torch.no_grad()
    def _kl(self, made: Sequence[Generation]) -> list[float]:
        """log p(answer) under the policy minus that under the reference, in nats."""
        examples = [Example([*g.prompt_ids, *g.ids], [False] * len(g.prompt_ids) + [True] * len(g.ids)) for g in made]
        kl = [0.0] * len(examples)
        for piece in micro_batches([len(e.ids) for e in examples], self.config.max_tokens):
            batch = pad([examples[i] for i in piece], self.writer.template.pad_id).to(self.session.device)
            logps = []
            with self.reference() as reference:
                logps.append(self._logps(reference, batch.ids_BT, batch.mask_BT, batch.lengths_B))
            logps.append(self._logps(self.policy, batch.ids_BT, batch.mask_BT, batch.lengths_B))
            for i, value in zip(piece, (logps[1] - logps[0]).tolist(), strict=True):
                kl[i] = value
        return kl

    def _logps(self, model: CausalLM, ids_BT: torch.Tensor, mask_BT: torch.Tensor, lengths_B: torch.Tensor) -> Any:
        temperature = self.sampling.temperature
        return completion_logprobs(model, ids_BT, mask_BT, lengths_B=lengths_B, temperature=temperature).logps_BT.sum(1)

    def _act(self, step: int) -> None:
        alarm = f"audit: {self.guard.alarm}"
        if self.settings.stop:
            self.session.end(alarm)
        else:
            self.session.run.note(f"after step {step}: {alarm}")

    def _write(self) -> None:
        if not self.session.world.is_main:
            return
        best = self.guard.best
        rows = [
            {
                "step": look.step,
                "kl": look.kl,
                "audit": look.audit,
                "audit_error": look.error,
                "proxy": look.proxy,
                "kept": look is best,
            }
            for look in self.guard.looks
        ]
        replace_text(self.session.run.path / "audit.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _means(scores: Sequence[float | None], each: int) -> list[float | None]:
    """Mean score of every prompt's answers; None where the judge has no opinion on any of them."""
    groups = [[s for s in scores[i : i + each] if s is not None] for i in range(0, len(scores), each)]
    return [statistics.fmean(group) if group else None for group in groups]
