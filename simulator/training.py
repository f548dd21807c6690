"""Lowering of a training step: a plan becomes a program of passes, transfers, reductions and an update.

Rank classes are pipeline stages: the tensor, context and data ranks of a stage do the same work and are
played once. Each stage has a compute stream, a stream for the collectives of the states, and one for sends
in each direction. A pass is one task, or one task per layer where states are gathered or reduced within it.
"""

from __future__ import annotations

from dataclasses import dataclass

from costmodel import collectives, network
from placement import schedules
from placement.memory import resident_bytes
from placement.passes import Setting, add, sent_bytes, total
from placement.plan import micro_batches
from placement.state_traffic import ChunkTraffic, chunks_with_traffic, norm_reduction_s, optimizer_s
from placement.units import Unit
from simulator.program import Program, ProgramBuilder


@dataclass(frozen=True)
class Slot:
    """One unit of one pass in the order of a stage, with the state traffic that goes with it."""

    kind: str  # "F" or "B"
    chunk: int  # in model order over the whole pipeline
    micro_batch: int
    unit: Unit
    gather_s: float = 0.0
    reduce_s: float = 0.0
    beside_s: float = 0.0  # state traffic that runs beside this pass
    gathered_bytes: float = 0.0  # copies of parameters dropped after the unit
    gradient_bytes: float = 0.0  # gradients dropped once they are reduced
    opens: bool = True  # first unit of its pass
    closes: bool = True  # last unit of its pass


@dataclass(frozen=True)
class Lowered:
    """The program of a step and what a reader needs to find passes in it again."""

    program: Program
    passes: tuple[tuple[int, int, str, int, int], ...]  # (task, stage, "F" or "B", chunk, micro-batch)
    micro_batches: int


def slots(order: list[schedules.Pass], chunk_of: list[int], chunks: tuple[ChunkTraffic, ...], count: int) -> list[Slot]:
    """The order of a stage with its units and what each gathers and reduces; `count` micro-batches.

    Parameters that stay gathered come once a step, in the first forward pass of their chunk; gradients that
    accumulate locally leave in the last backward pass of their chunk. Passes with such traffic go layer by
    layer, the others as one unit. What traffic once a step slows down beside it is spread evenly over the
    passes of the chunk (a simplification).
    """
    last_backward = {step.chunk: index for index, step in enumerate(order) if step.kind == "B"}
    seen: set[int] = set()
    result = []
    for index, step in enumerate(order):
        number, forward = chunk_of[step.chunk], step.kind == "F"
        chunk = chunks[number]
        once, final = forward and number not in seen, last_backward[step.chunk] == index
        seen.add(number)
        spread_s = float(chunk.step_s) / (2 * count)
        if not (chunk.step_s and (once or final)) and not chunk.within_passes:
            result.append(Slot(step.kind, number, step.micro_batch, chunk.whole, beside_s=spread_s))
            continue
        pairs = chunk.pairs
        for position, (unit, flows) in enumerate(pairs if forward else reversed(pairs)):
            gather_s = flows.forward_gather_s if forward else flows.backward_gather_s
            reduce_s = 0.0 if forward else flows.backward_reduce_s
            result.append(
                Slot(
                    step.kind,
                    number,
                    step.micro_batch,
                    unit,
                    gather_s=float(gather_s + (flows.step_gather_s if once else 0.0)),
                    reduce_s=float(reduce_s + (flows.step_reduce_s if final else 0.0)),
                    beside_s=float(gather_s + reduce_s) + spread_s / len(pairs),
                    gathered_bytes=float(flows.gathered_bytes) if gather_s else 0.0,
                    gradient_bytes=float(flows.gradient_bytes) if reduce_s else 0.0,
                    opens=position == 0,
                    closes=position == len(pairs) - 1,
                )
            )
    return result


class _Lowering:
    """The builder, and where the tasks of each pass start and end."""

    def __init__(self, setting: Setting, global_batch: int) -> None:
        self.setting, self.plan = setting, setting.plan
        self.stages = int(setting.plan.pipeline)
        self.build = ProgramBuilder()
        self.micro_batches = int(micro_batches(setting.plan, global_batch))
        self.chunks = chunks_with_traffic(setting)
        self.first: dict[tuple[str, int, int], int] = {}  # pass -> its first compute task
        self.sent: dict[tuple[str, int, int], int] = {}  # pass -> the task that hands its result on
        self.passes: list[tuple[int, int, str, int, int]] = []
        self.reductions: list[int] = []
        weight = float(setting.plan.tensor * setting.plan.data * setting.plan.context)
        self.streams = [
            {name: self.build.stream(stage, name, weight) for name in ("compute", "data", "send F", "send B")}
            for stage in range(self.stages)
        ]
        self.overlap_cost = setting.constants.overlap_cost if "data" in setting.stack.overlap else 0.0
        self.priced: dict[tuple[int, str, float], tuple[int, float]] = {}  # unit, kind, beside -> profile, seconds
        self.hop_s = [self.send_s(stage) for stage in range(self.stages)]
        self.data = self.build.profile({"data_communication": 1.0})
        self.pipeline = self.build.profile({"pipeline_communication": 1.0})

    def stream(self, stage: int, communication: str, name: str) -> int:
        """The stream of a transfer: its own where the stack overlaps it, otherwise it blocks compute."""
        return self.streams[stage][name if communication in self.setting.stack.overlap else "compute"]

    def run(self) -> Lowered:
        plan, schedule = self.plan, schedules.get(self.plan.schedule)
        virtual = int(plan.virtual)
        orders = schedule.generate(pipeline=self.stages, micro_batches=self.micro_batches, chunks=virtual)
        for stage, order in enumerate(orders):
            chunk_of = [schedule.stage_of(stage, chunk, self.stages, virtual) for chunk in range(virtual)]
            for state, size_bytes in resident_bytes(self.setting, self.units_of(stage)).items():
                self.build.resident(stage, "hbm", state, float(size_bytes))
            self.emit(stage, slots(order, chunk_of, self.chunks, self.micro_batches))
        self.connect()
        self.update()
        return Lowered(self.build.build(), tuple(self.passes), self.micro_batches)

    def emit(self, stage: int, sequence: list[Slot]) -> None:
        """The tasks of one stage. The gather of a unit is issued before the reduction of the unit before it,
        and may run while that unit computes."""
        build, stream = self.build, self.stream(stage, "data", "data")
        gather = self.gather(stage, sequence[0], -1)
        previous = -1
        for slot, following in zip(sequence, [*sequence[1:], None], strict=True):
            task = self.compute(stage, slot, [gather] if gather >= 0 else [])
            if slot.gathered_bytes:
                build.memory(gather, "start", stage, "hbm", "gathered", slot.gathered_bytes)
                build.memory(task, "end", stage, "hbm", "gathered", -slot.gathered_bytes)
            gather = self.gather(stage, following, previous) if following else -1
            if slot.reduce_s:
                reduce = build.task(stream, "reduce", self.data, slot.reduce_s, [task])
                self.reductions.append(reduce)
                build.memory(task, "start", stage, "hbm", "gradients", slot.gradient_bytes)
                build.memory(reduce, "end", stage, "hbm", "gradients", -slot.gradient_bytes)
            previous = task

    def gather(self, stage: int, slot: Slot, behind: int) -> int:
        """The gather of a slot's parameters, -1 where there is none; a copy that is dropped again waits for
        the unit before last, so that at most two are held."""
        if not slot.gather_s:
            return -1
        after = [behind] if slot.gathered_bytes and behind >= 0 else []
        return self.build.task(self.stream(stage, "data", "data"), "gather", self.data, slot.gather_s, after)

    def price(self, slot: Slot) -> tuple[int, float]:
        """(profile, seconds) of the compute task of a slot, with what the traffic beside it costs."""
        key = (id(slot.unit), slot.kind, slot.beside_s)
        if key not in self.priced:
            price = slot.unit.price
            seconds = add({}, price.forward if slot.kind == "F" else price.backward)
            hidden_s = min(slot.beside_s, float(total(seconds)))
            add(seconds, {"contention": self.overlap_cost * hidden_s})
            self.priced[key] = (self.build.profile(seconds), float(total(seconds)))
        return self.priced[key]

    def compute(self, stage: int, slot: Slot, after: list[int]) -> int:
        """The compute task of a slot, its memory, and the send behind the last unit of a pass."""
        build, unit = self.build, slot.unit
        profile, duration_s = self.price(slot)
        label = f"{slot.kind}{slot.micro_batch}"
        task = build.task(self.streams[stage]["compute"], label, profile, duration_s, after)
        self.passes.append((task, stage, slot.kind, slot.chunk, slot.micro_batch))
        saved, working = float(unit.saved_bytes), float(unit.working_bytes)
        if slot.kind == "F":
            build.memory(task, "start", stage, "hbm", "activations", saved)
        else:
            build.memory(task, "start", stage, "hbm", "activations", working)
            build.memory(task, "end", stage, "hbm", "activations", -working - saved)
        key = (slot.kind, slot.chunk, slot.micro_batch)
        if slot.opens:
            self.first[key] = task
        if slot.closes:
            self.sent[key] = self.send(stage, slot, task)
        return task

    def send(self, stage: int, slot: Slot, task: int) -> int:
        """Hands activations (or their gradients) to the stage of the next (previous) chunk."""
        step = 1 if slot.kind == "F" else -1
        if self.stages == 1 or not 0 <= slot.chunk + step < len(self.chunks):
            return task
        hop_s = self.hop_s[stage if slot.kind == "F" else stage - 1]
        stream = self.stream(stage, "pipeline", f"send {slot.kind}")
        return self.build.task(stream, f"send {slot.kind}{slot.micro_batch}", self.pipeline, hop_s, [task])

    def send_s(self, stage: int) -> float:
        """Seconds of one hop between a stage and the next one (the last and the first), either way."""
        plan, cluster = self.plan, self.setting.cluster
        size_bytes = sent_bytes(self.setting)
        ranks, domain = int(plan.tensor * plan.context * plan.data), cluster.node.scale_up_domain
        crosses = stage * ranks // domain != (stage + 1) % self.stages * ranks // domain
        return float(collectives.point_to_point_s(size_bytes, crosses, network.paths(cluster)))

    def connect(self) -> None:
        """Forward passes wait for the chunk before, backward passes for the chunk after."""
        for (kind, chunk, micro_batch), task in self.first.items():
            source = ("F", chunk - 1, micro_batch) if kind == "F" else ("B", chunk + 1, micro_batch)
            if kind == "B" and chunk == len(self.chunks) - 1:
                source = ("F", chunk, micro_batch)
            if source in self.sent:
                self.build.add_dependency(task, self.sent[source])

    def update(self) -> None:
        """Optimizer step behind the global gradient norm, which waits for every stage's gradients."""
        norm = self.build.profile({"data_communication": 1.0})
        ends = self.reductions or list(self.sent.values())
        barrier = self.build.task(
            self.streams[0]["data"], "gradient norm", norm, norm_reduction_s(self.setting), after=ends
        )
        optimizer = self.build.profile({"optimizer": 1.0})
        for stage in range(self.stages):
            duration_s = float(optimizer_s(self.setting, self.units_of(stage)))
            self.build.task(self.streams[stage]["compute"], "optimizer", optimizer, duration_s, after=[barrier])

    def units_of(self, stage: int) -> list[Unit]:
        schedule, virtual = schedules.get(self.plan.schedule), int(self.plan.virtual)
        numbers = [schedule.stage_of(stage, chunk, self.stages, virtual) for chunk in range(virtual)]
        return [self.chunks[number].whole for number in numbers]


def lower(setting: Setting, global_batch: int) -> Lowered:
    """The program of one training step. Raises PlanError where the batch or the layers do not divide."""
    return _Lowering(setting, global_batch).run()
