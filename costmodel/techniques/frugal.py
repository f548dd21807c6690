"""FRUGAL: Adam's moments on a share of the linear layers' weights, signSGD on the rest (arXiv 2411.07837).

Defaults and variants as read in fzmushko/FRUGAL: density rho 0.25, a new choice every 200 steps (update_gap) with
moments reset, state-free rule sign_sgd. Embedding, head, norms and biases keep Adam.

    moments       8 rho bytes a weight of linear layers in place of 8; the master copy stays as the plan has it
    update        the 16 bytes of reading and writing both moments fall away with them (34 -> 18 bytes a weight)
    svd variant   every update_gap steps a thin SVD of each gradient matrix (k x n, k <= n): 6 n k^2 + 20 k^3 FLOPs
                  (Golub and Van Loan, Matrix Computations, R-SVD) at the fp32 peak, spread over the gap: at least that
blockwise, columns and randk choose without arithmetic; randk's indices are rebuilt from a seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from costmodel.operators import WEIGHT, Number, Operator
from costmodel.techniques.base import Technique, parameter
from costmodel.work import Case, Work


@dataclass(frozen=True)
class Frugal(Technique):
    density: float = parameter(0.25, "share of the linear layers' weights with Adam's moments", ge=0, le=1)
    update_gap: int = parameter(200, "steps between two choices of that share", ge=1, le=1_000_000)
    variant: str = parameter("blockwise", "how the share is chosen", one_of=("blockwise", "columns", "randk", "svd"))

    title: ClassVar[str] = "FRUGAL: Adam on a share of the weights, signSGD on the rest"
    source: ClassVar[str] = "arXiv 2411.07837; defaults: fzmushko/FRUGAL"
    law: ClassVar[str] = "8 rho bytes of moments a linear weight; 18 + 16 rho bytes moved a step"

    def layer(self, work: Work, case: Case) -> Work:
        dense, sparse = (weights.thinned(moments=self.density) for weights in (work.dense, work.sparse))
        found = replace(work, dense=dense, sparse=sparse)
        if self.variant != "svd":
            return found
        trained = (one for one in work.operators if one.category == "gemm" and WEIGHT in one.products)
        svd: Number = sum((svd_flops(one) for one in trained), 0.0)
        return replace(found, update_flops=found.update_flops + svd / self.update_gap)


def svd_flops(operator: Operator) -> Number:
    """FLOPs of a thin singular value decomposition of a linear layer's gradient.

    >>> from costmodel.operators import gemm
    >>> float(svd_flops(gemm("square", 1, 10, 10)))
    26000.0
    """
    short, long = np.minimum(operator.k, operator.n), np.maximum(operator.k, operator.n)
    return operator.groups * (6.0 * long * short**2 + 20.0 * short**3)
