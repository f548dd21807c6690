"""ByteScale (arXiv 2502.21231): hybrid data parallelism for batches of long and short sequences.

Mechanism: a sequence takes as many of the data x context ranks as its tokens need, in place of one static mesh for
all; long ones take fewer by offloading a share of their activations (equation 3); the costliest go first, to the ranks
that lag the most (algorithm 2).
Answered: throughput against the static mesh with packing, the ablation, step times, the loss per doubling of the
context, and what offloading costs. Sequences are drawn from heavy-tailed laws that have the published share of tokens
above 256K (Byted 37 %, GitHub 9.8 %). GPUs and links were not published. One figure of the paper settles the ratio of
compute to network, the share of a packed micro-batch of the baseline that is sends (97.6 %, row BS-8, hence an input
here); every other answer follows from it and goes over what stays open: GPUs of two generations, two laws, and how
1,024 GPUs make 8 micro-batches of 256 ranks (tensor 2 and 32M tokens, or 64M tokens).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np

from costmodel import catalog
from costmodel.architecture import Model
from costmodel.hardware import Cluster, Node
from costmodel.huggingface import catalog_model
from placement.context_groups import MicroBatch
from placement.hybrid_data import cuts, stage_costs
from placement.hybrid_step import step_times_s
from placement.passes import Setting
from placement.plan import Plan
from placement.sequences import Law, fitted
from scenarios.papers import settings
from scenarios.papers.answers import Answer, NotCheckable, NotMapped, Span
from scenarios.papers.claims import Claim
from simulator.hybrid_data import lengths_of
from simulator.inputs import TrainingInputs
from simulator.predict import setting_of

NODES = ("hgx-a100", "hgx-h800")
LAWS = (("log-normal", 64.0, 2048.0), ("pareto", 512.0, 0.0))  # shortest, median: assumed
# Batches drawn for a mean step. Two or three still carry spans across a verdict; with six the verdicts are those of
# sixteen (ablation) and twelve (7B and 13B), which take too long here.
SEEDS = tuple(range(6))
SHARES = {"github": 0.098, "byted": 0.37}  # of tokens in sequences above 256K (section 8)
LONGEST, ABOVE, CAPACITY = 2**21, 2**18, 2**13  # tokens
BATCH = 2**25  # tokens of a global batch (section 8)
SENDS = 0.976  # of a packed micro-batch of the static mesh: the one figure that settles compute over network
SHORT = 2048  # tokens of a sequence of such a micro-batch; any that is short gives the same
STACK = {"execution": "fused", "attention": "flash-2", "overlap": ["data", "pipeline"]}
OPEN = "GPUs, law of lengths, tokens a step"
DRAWN = ("the lengths that were drawn, and in which order the paper's naive plan fills ranks: here some draw several "
         "long sequences")
EXACT_RING = ("sends beside attention cost only a share of their length here, so that hybrid rings hide most of theirs "
              "already and offloading, which shortens rings, has less to gain")
BOUND = "the paper does not print its lengths; how many ranks the longest sequence takes decides the step"


@dataclass(frozen=True)
class Case:
    """One way to fill in what the paper leaves open. `tokens` a step, `context` the longest sequence."""

    node: str
    gpus: int
    model: str
    tensor: int
    pipeline: int
    law: tuple[str, float, float]
    share: float
    tokens: int
    context: int = LONGEST

    def inputs(self, policy: str, offload: bool) -> TrainingInputs:
        node = networked(self.node)
        cluster = Cluster(node, -(-self.gpus // node.accelerators), self.gpus)
        ranks = self.gpus // (self.tensor * self.pipeline)
        context = min(self.context // CAPACITY, ranks)
        plan = Plan(tensor=self.tensor, sequence_parallel=self.tensor > 1, pipeline=self.pipeline, context=context,
                    data=ranks // context, context_method="ring", context_groups=policy, selective_offload=offload)
        return TrainingInputs("claim", "", "", {}, model_of(self.model), cluster, plan, self.context,
                              self.tokens // self.context, law_of(self.share, *self.law), stack=STACK)


@cache
def law_of(share: float, name: str, shortest: float, median: float) -> Law:
    return fitted(name, share, ABOVE, shortest, LONGEST, median)


@cache
def model_of(name: str) -> Model:
    """A LLaMA of the catalogue with 8 groups of keys and values (section 8)."""
    model = catalog_model(name)
    layers = tuple(
        replace(layer, attention=replace(layer.attention, kind="gqa", kv_heads=8)) for layer in model.layers
    )
    return replace(model, layers=layers)


@cache
def networked(name: str) -> Node:
    """The node with network cards such that sends are the published share of a packed micro-batch on 256 ranks."""
    node = catalog.node(name)
    low, high = 1e8, 1e12
    for _ in range(40):
        middle = float(np.sqrt(low * high))
        if sends_share(with_cards(node, middle)) > SENDS:
            low = middle
        else:
            high = middle
    return with_cards(node, low)


def with_cards(node: Node, bandwidth_bytes_per_s: float) -> Node:
    source = "share of sends in a baseline micro-batch, arXiv 2502.21231, section 8"
    return replace(node, scale_out=replace(node.scale_out, bandwidth_bytes_per_s=bandwidth_bytes_per_s, source=source))


def sends_share(node: Node) -> float:
    """Sends over the whole of a micro-batch of short sequences on the static mesh of the 7B model."""
    context = LONGEST // CAPACITY
    plan = Plan(context=context, data=1024 // context, context_method="ring")
    inputs = TrainingInputs("claim", "", "", {}, model_of("llama-2-7b"), Cluster(node, 128, 1024), plan, LONGEST, 16,
                            stack=STACK)
    setting: Setting = setting_of(inputs)
    cost = stage_costs(setting, [MicroBatch((SHORT,) * (LONGEST // SHORT), context)], np.array([True]))[0]
    return float(cost.ring_s[0] / (cost.forward_s[0] + cost.backward_s[0]))


@cache
def step_s(case: Case, policy: str, offload: bool) -> float:
    """Seconds of a step, the mean over drawn batches."""
    inputs = case.inputs(policy, offload)
    setting = setting_of(inputs)
    batches = [lengths_of(replace(inputs, seed=seed)) for seed in SEEDS]
    return float(np.mean(step_times_s(setting, cuts(setting, batches, policy, offload))))


def ablation_cases(share: float) -> Iterator[Case]:
    """7B on 1,024 GPUs with 8 micro-batches of 256 context ranks."""
    for node, law, (tensor, tokens) in product(NODES, LAWS, ((2, BATCH), (1, 2 * BATCH))):
        yield Case(node, 1024, "llama-2-7b", tensor, 1, law, share, tokens)


def larger_cases(share: float, pipelines: bool) -> Iterator[Case]:
    """The models of the balance without and with a pipeline; where the paper gives no degrees, those that fit 80 GB."""
    shapes = (("llama-2-70b", 8192, 8, 4),) if pipelines else (("llama-2-7b", 1024, 1, 1), ("llama-2-13b", 2048, 2, 1))
    for node, law, (model, gpus, tensor, pipeline) in product(NODES, LAWS, shapes):
        yield Case(node, gpus, model, tensor, pipeline, law, share, BATCH)


def speedup(cases: Iterable[Case], policy: str, offload: bool) -> list[float]:
    return [step_s(case, "static", False) / step_s(case, policy, offload) for case in cases]


def how(kind: str) -> str:
    rates = {name: networked(name).scale_out.bandwidth_bytes_per_s * 8e-9 for name in NODES}
    cards = ", ".join(f"{rate:.0f} Gb/s a GPU on {name}" for name, rate in rates.items())
    return f"{kind}; network settled by the share of sends of the baseline: {cards}; {len(SEEDS)} batches drawn"


def answer(claim: Claim) -> Answer:
    metric, identity = claim.metric.lower(), f"{claim.claim_id} {claim.setting}".lower()
    if "p2p" in metric:
        raise NotCheckable("GPUs and links: this share is what settles their ratio for all other rows")
    if "offload ratio" in identity:
        return _offloaded(claim)
    if "decrease" in metric:
        return _doublings(claim)
    if "loader" in identity:
        raise NotMapped("data loading on the way of a step")
    if "step time" in metric:
        return _step(identity)
    if "throughput" not in metric:
        raise NotMapped(f"metric {claim.metric!r}: throughput, step time and its growth are read")
    if "ablation" in identity:
        return _ablation(identity)
    share = SHARES["byted" if "byted" in identity else "github"]
    pipelines = "pp-balance" in identity
    found = speedup(larger_cases(share, pipelines), "pp-balance" if pipelines else "dp-balance", True)
    if "balance" not in identity:  # the largest of all models
        found += speedup(larger_cases(share, True), "pp-balance", True)
    told = "70B alone (expert parallelism is not played with unequal sequences)" if pipelines else "7B and 13B"
    return Answer(ratio=Span.of(found), open=f"{OPEN}; {told}", missing={"": BOUND},
                  how=how("balanced with offloading over the static mesh"))


def _ablation(identity: str) -> Answer:
    policy, offload, term = "naive", False, DRAWN
    if "offload" in identity:
        offload, term = True, f"{EXACT_RING}; {DRAWN}"
    elif "balance" in identity:
        policy, offload, term = "dp-balance", True, BOUND
    found = Span.of(speedup(ablation_cases(SHARES["byted"]), policy, offload))
    return Answer(found, Span.of(1.0), found, open=OPEN, missing={"": term},
                  how=how(f"{policy}{' with offloading' if offload else ''} over the static mesh"))


def _step(identity: str) -> Answer:
    """Seconds; whether the step shown has offloading is not said."""
    policy = "dp-balance" if "balance" in identity else "naive"
    cases = list(ablation_cases(SHARES["byted"]))
    times = [step_s(case, policy, offload) for case in cases for offload in (False, True)]
    ratios = [one for offload in (False, True) for one in speedup(cases, policy, offload)]
    return Answer(Span.of(times), Span.of([step_s(case, "static", False) for case in cases]), Span.of(ratios),
                  open=f"{OPEN}, offloading", how=how(f"{policy}, mean step"), missing={"": BOUND})


def _doublings(claim: Claim) -> Answer:
    """Loss of throughput with each doubling of the context, 256K to 2M; longer sequences are cut to the context."""
    share = SHARES["byted" if "byted" in claim.setting.lower() else "github"]
    names = {"balance": "dp-balance", "naive": "naive"}
    policy = next((names[word] for word in names if word in claim.claim_id.lower()), "static")
    found = []
    for case in ablation_cases(share):
        long, short = (step_s(replace(case, context=context), policy, policy != "static")
                       for context in (LONGEST, ABOVE))
        found.append((long / short) ** (1 / np.log2(LONGEST / ABOVE)))
    left = f"{OPEN}, what becomes of sequences longer than the context"
    return Answer(Span.of(found), open=left, missing={"": BOUND},
                  how=how("steps at 256K and 2M, the third root"))


def _offloaded(claim: Claim) -> Answer:
    """A micro-batch of one sequence on the ranks that its tokens need, with and without a share offloaded."""
    context, share = settings.tokens(claim.setting), settings_share(claim.setting)
    if context is None or share is None:
        raise NotCheckable("the context and the share offloaded")
    degree = max(context // CAPACITY, 1)
    ratios = []
    for name, behind_a_switch in product(NODES, (1, 2)):
        node = with_host_link(networked(name), behind_a_switch)
        plan = Plan(context=degree, data=1024 // degree, context_method="ring")
        inputs = TrainingInputs("claim", "", "", {}, model_of("llama-2-7b"), Cluster(node, 128, 1024), plan, context,
                                1024, stack=STACK)
        both = [MicroBatch((context,), degree, one) for one in (0.0, share)]
        cost = stage_costs(setting_of(inputs), both, np.array([degree > 8] * 2))[0]
        plain_s, away_s = (cost.forward_s + cost.backward_s).tolist()
        ratios.append(away_s / plain_s)
    return Answer(ratio=Span.of(ratios), open="GPUs; a host link of each GPU or one for two behind a switch",
                  how=f"one micro-batch of {context:,} tokens on {degree} ranks, a share of {share:g} copied beside it",
                  missing={"": "what the host link reaches while eight ranks copy"})


def with_host_link(node: Node, shared_by: int) -> Node:
    """The node with an equal part of a host link for each GPU that copies at the same time."""
    link = node.accelerator.host_link
    if link is None:
        return node
    part = replace(link, bandwidth_bytes_per_s=link.bandwidth_bytes_per_s / shared_by)
    return replace(node, accelerator=replace(node.accelerator, host_link=part))


def settings_share(text: str) -> float | None:
    """The share of an offload ratio that a setting names.

    >>> settings_share("64K context, offload ratio 0.5")
    0.5
    """
    found = re.search(r"offload ratio (\d*\.?\d+)", text)
    return float(found[1]) if found else None
