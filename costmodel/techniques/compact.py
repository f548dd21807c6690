"""CompAct: linear layers keep a random projection of their input (arXiv 2410.15352).

Of an input x (tokens x n) only x P (tokens x r) is kept for the weight gradient; P (n x r) is made again from its seed
whenever it is needed. The weight gradient (x P)^T dY and Adam's moments are r x m in place of n x m, and the update is
multiplied back once a step. The head and the embedding are left as they are.

    kept          2 r bytes a token and linear input in place of 2 n, where the input serves that layer alone
    forward       + 2 tokens n r FLOPs; backward: the weight gradient takes 2 tokens r m in place of 2 tokens n m
    states        gradients and moments: n m -> r m; weights and master copy stay
    optimizer     + 2 n r m FLOPs a step for multiplying the update back
rank: 0.25 or 0.5 of n in pre-training, 8 in fine-tuning. What a nonlinearity or a flash kernel keeps for itself is not
compressed. Under full recomputation nothing is kept that could be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from costmodel.activations import Kept
from costmodel.operators import FORWARD, INPUT, WEIGHT, Number, Operator, gemm, memory_bound, only
from costmodel.techniques.base import Technique, parameter, share
from costmodel.work import Case, Weights, Work


@dataclass(frozen=True)
class CompAct(Technique):
    rank: float = parameter(0.25, "width of a kept input: a share of it (below 1) or channels", gt=0, le=1_000_000)

    title: ClassVar[str] = "CompAct: inputs of linear layers kept as random projections"
    source: ClassVar[str] = "arXiv 2410.15352"
    law: ClassVar[str] = "kept inputs, gradients and moments x r/n; + 2 tokens n r FLOPs forward, + 2 n r m a step"

    def layer(self, work: Work, case: Case) -> Work:
        compressed = [one for one in work.operators if self._takes(one)]
        if not compressed:
            return work
        operators: list[Operator] = []
        for one in work.operators:
            operators += self._operators(one) if self._takes(one) else [one]
        kept = work.kept
        if case.recompute != "full":
            projected: Number = sum((2.0 * one.m * self.width(one) * one.groups for one in compressed), 0.0)
            routes = bool(case.layer.feed_forward.experts)  # the router needs its input whole
            stay = (one for one in kept if not one.feeds or (routes and one.feeds == "feed_forward"))
            kept = (*stay, Kept("projected_inputs", projected))
        dense, sparse = ([one for one in compressed if one.routed is routed] for routed in (False, True))
        return replace(
            work,
            operators=tuple(operators),
            kept=kept,
            dense=self._thinned(work.dense, dense),
            sparse=self._thinned(work.sparse, sparse),
            update=(*work.update, *(gemm(f"{one.name}_restored", one.k, one.n, self.width(one), one.groups)
                                    for one in compressed)),
        )

    def width(self, operator: Operator) -> Number:
        """r: channels kept of the input of a linear layer."""
        return np.minimum(share(self.rank, operator.k), operator.k)

    def _takes(self, operator: Operator) -> bool:
        """Trained linear layers of the blocks; not the router, nor what feeds adapters their low rank."""
        return operator.category == "gemm" and operator.narrow and WEIGHT in operator.products

    def _operators(self, one: Operator) -> list[Operator]:
        width = self.width(one)
        projection = 2.0 * 2.0 * one.k * width * one.groups  # P written and read in 2 bytes
        gradient = only(gemm(f"{one.name}_gradient", one.m, one.n, width, one.groups), WEIGHT)
        return [
            only(one, FORWARD, INPUT),
            memory_bound(f"{one.name}_seeded", projection, 0.0 * projection),
            only(gemm(f"{one.name}_projection", one.m, width, one.k, one.groups), FORWARD),
            gradient,
        ]

    def _thinned(self, weights: Weights, operators: list[Operator]) -> Weights:
        """Gradients and moments of the compressed matrices at r/n of their size."""
        if not operators:
            return weights
        whole: Number = sum((one.k * one.n * one.groups for one in operators), 0.0)
        left = sum((self.width(one) * one.n * one.groups for one in operators), 0.0) / whole
        return weights.thinned(left, left)
