"""Settings of direct preference optimisation and its relatives."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from goodheart.losses.family import TRAITS, Traits
from goodheart.stages.settings.references import ReferenceSettings


class DPOConfig(ReferenceSettings):
    """Settings of direct preference optimisation; `data` are pairs or rankings."""

    loss: Literal["sigmoid", "robust", "hinge", "ipo", "simpo", "cpo", "orpo"] = "sigmoid"
    # None = the loss's own, where it has one (see docs/dpo.md)
    beta: float | None = Field(None, gt=0)  # reward per nat; larger keeps the policy closer to the reference
    gamma: float | None = Field(None, ge=0)  # lead that the better answer has to reach, in units of reward
    length_normalize: bool | None = None  # log-probabilities per token instead of per answer
    sft_coef: float | None = Field(None, ge=0)  # times the negative log-likelihood per token of the best answer
    margin_scale: float = Field(1.0, ge=0)  # times the rows' `margin`, added to the lead; 0 = margins are not used
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)  # share of labels taken to be wrong
    soft_labels: str | None = None  # column with the probability that the order given is right; None = `probability`
    ranking: Literal["pairs", "plackett-luce"] = "pairs"  # what K > 2 answers to a prompt are taken as

    @property
    def traits(self) -> Traits:
        """Of the loss."""
        return TRAITS[self.loss]

    def own(self, setting: Literal["beta", "gamma", "sft_coef"]) -> float:
        """What was set, else what the loss's paper takes."""
        given = getattr(self, setting)
        return getattr(self.traits, setting) if given is None else given

    @property
    def soft_column(self) -> str | None:
        """The column of soft labels where that is not `probability`, which every reader of comparisons knows."""
        return None if self.soft_labels == "probability" else self.soft_labels

    @property
    def per_token(self) -> bool:
        """Whether log-probabilities are divided by the tokens of the answer."""
        return self.traits.per_token if self.length_normalize is None else self.length_normalize

    @model_validator(mode="after")
    def _go_together(self) -> DPOConfig:
        if self.reference is not None and not self.traits.needs_reference:
            raise ValueError(f"`loss: {self.loss}` compares with no reference: leave `reference` out")
        if self.label_smoothing and self.soft_labels:
            raise ValueError("`soft_labels` say how sure each label is, `label_smoothing` how sure all are: give one")
        if (self.label_smoothing or self.soft_labels) and not self.traits.smooths:
            raise ValueError(f"`loss: {self.loss}` has no form for labels that may be wrong: use `loss: sigmoid`")
        if self.loss == "robust" and not self.label_smoothing:
            raise ValueError("`loss: robust` needs `label_smoothing`, the share of labels that are wrong (0.1, say)")
        if self.loss == "orpo" and self.length_normalize is False:
            raise ValueError("`loss: orpo` is about probabilities per token: leave `length_normalize` out")
        if self.ranking == "plackett-luce":
            if not self.traits.ranks or self.own("gamma"):
                raise ValueError("`ranking: plackett-luce` takes `loss: sigmoid`, `cpo`, or `simpo` with `gamma: 0`")
            if self.label_smoothing or self.soft_labels:
                raise ValueError("`label_smoothing` and `soft_labels` belong to `ranking: pairs`")
            if self.margin_scale not in (0, 1):
                raise ValueError("`margin_scale` belongs to `ranking: pairs`: a whole ranking has no margins")
        return self
