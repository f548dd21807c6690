"""Lowering of a training step: a plan becomes a program of passes, transfers, reductions and an update.

Rank classes are pipeline stages: the tensor, context and data ranks of a stage do the same work and are
played once. Each stage has a compute stream, a stream for the collectives of the states, and one for sends
in each direction. A pass is one task, or one task per layer where states are gathered or reduced within it.
"""

from __future__ import annotations

from dataclasses import dataclass

from placement import schedules
from placement.hops import hop_s
from placement.memory import (
    first_backward_bytes,
    gradient_bytes,
    gradients_come_late,
    resident_bytes,
    update_bytes,
)
from placement.passes import PassPrice, Seconds, Setting, add, total
from placement.pipeline import (
    OutputLayer,
    copies_reduction_s,
    dropped_share,
    host_bandwidth_bytes_per_s,
    orders_of,
    output_layer,
    ranks_of_nodes,
    segment_shares,
    stage_passes,
    stages_of_rank,
)
from placement.plan import micro_batches
from placement.state_traffic import ChunkTraffic, chunks_with_traffic, norm_reduction_s, optimizer_s
from placement.units import Unit
from simulator.program import Program, ProgramBuilder


@dataclass(frozen=True)
class Slot:
    """One unit of one pass in the order of a stage, with the state traffic that goes with it."""

    kind: str  # of placement.schedules.order.KINDS
    node: int  # stage in model order; those of a second route follow the first's
    micro_batch: int
    unit: Unit
    gather_s: float = 0.0
    reduce_s: float = 0.0
    beside_s: float = 0.0  # state traffic that runs beside this pass
    gathered_bytes: float = 0.0  # copies of parameters dropped after the unit
    gradient_bytes: float = 0.0  # gradients dropped once they are reduced
    opens: bool = True  # first unit of its pass
    closes: bool = True  # last unit of its pass
    joined: bool = False  # runs in one slot with the slot before


@dataclass(frozen=True)
class Lowered:
    """The program of a step and what a reader needs to find passes in it again."""

    program: Program
    passes: tuple[tuple[int, int, str, int, int], ...]  # (task, rank, kind of pass, stage, micro-batch)
    micro_batches: int  # or segments of them


def slots(
    order: list[schedules.Pass], node_of: list[int], chunks: tuple[ChunkTraffic, ...], count: int, last: str
) -> list[Slot]:
    """The order of a rank with its units and what each gathers and reduces; each chunk runs `count` times.

    `last` is the kind of pass behind which gradients are whole: "W" where the backward is split, else "B".
    Parameters that stay gathered come once a step, in the first forward pass of their chunk; gradients that
    accumulate locally leave in the last backward pass of their chunk. Passes with such traffic go layer by
    layer, the others as one unit. What traffic once a step slows down beside it is spread evenly over the
    passes of the chunk (a simplification).
    """
    final_of = {step.chunk: index for index, step in enumerate(order) if step.kind == last}
    seen: set[int] = set()
    result = []
    for index, step in enumerate(order):
        if step.kind in "ST":
            result.append(Slot(step.kind, index, step.micro_batch, _NOTHING, joined=step.joined))
            continue
        node = node_of[step.chunk]
        chunk = chunks[node % len(chunks)]
        once, final = step.kind == "F" and node not in seen, final_of[step.chunk] == index
        seen.add(node)
        spread_s = float(chunk.step_s) / (2 * count) if step.kind in "FB" else 0.0
        if step.kind in "OL" or (not (chunk.step_s and (once or final)) and not chunk.within_passes):
            result.append(
                Slot(step.kind, node, step.micro_batch, chunk.whole, beside_s=spread_s, joined=step.joined)
            )
            continue
        result += _layer_slots(step, node, chunk, spread_s, once, final, last)
    return result


def _layer_slots(
    step: schedules.Pass, node: int, chunk: ChunkTraffic, spread_s: float, once: bool, final: bool, last: str
) -> list[Slot]:
    """One pass layer by layer; backward passes run through the layers in reverse."""
    pairs, forward = chunk.pairs, step.kind in "FR"
    result = []
    for position, (unit, flows) in enumerate(pairs if forward else reversed(pairs)):
        forward_s = flows.forward_gather_s
        gather_s = {"F": forward_s, "R": forward_s, "B": flows.backward_gather_s}.get(step.kind, 0.0)
        reduce_s = flows.backward_reduce_s if step.kind == last else 0.0
        result.append(
            Slot(
                step.kind,
                node,
                step.micro_batch,
                unit,
                gather_s=float(gather_s + (flows.step_gather_s if once else 0.0)),
                reduce_s=float(reduce_s + (flows.step_reduce_s if final else 0.0)),
                beside_s=float(gather_s + reduce_s) + spread_s / len(pairs),
                gathered_bytes=float(flows.gathered_bytes) if gather_s else 0.0,
                gradient_bytes=float(flows.gradient_bytes) if reduce_s else 0.0,
                opens=position == 0,
                closes=position == len(pairs) - 1,
                joined=step.joined or position > 0,
            )
        )
    return result


_NOTHING = Unit(PassPrice({}, {}), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class _Lowering:
    """The builder, and where the tasks of each pass start and end."""

    def __init__(self, setting: Setting, global_batch: int) -> None:
        self.setting, self.plan = setting, setting.plan
        self.schedule = schedules.get(setting.plan.schedule)
        self.stages = int(setting.plan.pipeline)
        self.build = ProgramBuilder()
        self.micro_batches = int(micro_batches(setting.plan, global_batch))
        self.chunks = chunks_with_traffic(setting)
        self.segments, self.shares = int(setting.plan.segments), segment_shares(setting)
        self.dropped = dropped_share(setting, self.chunks)
        self.output = output_layer(setting) if self.schedule.barriers else None
        self.rank_of = ranks_of_nodes(setting)
        self.first: dict[tuple[str, int, int], int] = {}  # pass -> the first compute task of its slot
        self.sent: dict[tuple[str, int, int], int] = {}  # pass -> the task that hands its result on
        self.ended: dict[tuple[str, int, int], int] = {}  # F, O and L passes -> their last task
        self.opened = -1  # first task of the slot that is being emitted
        self.open_passes: list[tuple[tuple[str, int, int], int, Slot]] = []  # of that slot
        self.last_compute: dict[int, int] = {}  # by rank
        self.late = gradients_come_late(setting)
        self.first_backward: dict[int, int] = {}  # node -> micro-batch whose backward pass makes its gradients
        self.passes: list[tuple[int, int, str, int, int]] = []
        self.reductions: dict[int, list[int]] = {stage: [] for stage in range(self.stages)}
        self.weight = int(setting.plan.tensor * setting.plan.data * setting.plan.context)
        self.streams = [
            {
                name: self.build.stream(stage, name, float(self.weight))
                for name in ("compute", "data", "send F", "send B")
            }
            for stage in range(self.stages)
        ]
        self.overlap_cost = setting.constants.overlap_cost if "data" in setting.stack.overlap else 0.0
        self.priced: dict[tuple[int, str, float], tuple[int, float]] = {}  # unit, kind, beside -> profile, seconds
        self.hop_s = [hop_s(setting, stage) for stage in range(self.stages)]
        self.data = self.build.profile({"data_communication": 1.0})
        self.pipeline = self.build.profile({"pipeline_communication": 1.0})

    def stream(self, stage: int, communication: str, name: str) -> int:
        """The stream of a transfer: its own where the stack overlaps it, otherwise it blocks compute."""
        return self.streams[stage][name if communication in self.setting.stack.overlap else "compute"]

    def run(self) -> Lowered:
        schedule = self.schedule
        passes = stage_passes(self.chunks)
        orders = orders_of(self.setting, passes, self.micro_batches)
        last = "W" if schedule.splits_backward else "B"
        runs = self.micro_batches * self.segments // schedule.routes  # of each chunk
        for rank, order in enumerate(orders):
            node_of = [
                stage + (chunk * len(self.chunks) if schedule.routes > 1 else 0)
                for chunk, stage in enumerate(stages_of_rank(self.setting, rank))
            ]
            for state, size_bytes in resident_bytes(self.setting, self.units_of(rank)).items():
                if not (self.late and state == "gradients"):
                    self.build.resident(rank, "hbm", state, float(size_bytes))
            self.emit(rank, slots(order, node_of, self.chunks, runs, last))
        self.connect()
        self.update()
        return Lowered(self.build.build(), tuple(self.passes), self.micro_batches * self.segments)

    def emit(self, stage: int, sequence: list[Slot]) -> None:
        """The tasks of one stage. The gather of a unit is issued before the reduction of the unit before it,
        and may run while that unit computes."""
        build, stream = self.build, self.stream(stage, "data", "data")
        gather = self.gather(stage, sequence[0], -1)
        previous = -1
        for slot, following in zip(sequence, [*sequence[1:], None], strict=True):
            if slot.kind in "OL":
                self.copy(stage, slot)
                gather = self.gather(stage, following, previous) if following else -1
                continue
            task = self.compute(stage, slot, [gather] if gather >= 0 else [])
            self.last_compute[stage] = task
            if slot.kind == "F":
                self.ended[slot.kind, slot.node, slot.micro_batch] = task
            if following is None or not following.joined:
                self.close(task)
            if slot.gathered_bytes:
                build.memory(gather, "start", stage, "hbm", "gathered", slot.gathered_bytes)
                build.memory(task, "end", stage, "hbm", "gathered", -slot.gathered_bytes)
            gather = self.gather(stage, following, previous) if following else -1
            if slot.reduce_s:
                reduce = build.task(stream, "reduce", self.data, slot.reduce_s, [task])
                self.reductions[stage].append(reduce)
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
            seconds = add({}, self.seconds(slot))
            hidden_s = min(slot.beside_s, float(total(seconds)))
            add(seconds, {"contention": self.overlap_cost * hidden_s})
            self.priced[key] = (self.build.profile(seconds), float(total(seconds)))
        return self.priced[key]

    def seconds(self, slot: Slot) -> Seconds:
        price = slot.unit.price
        if slot.kind in "ST":
            assert self.output is not None
            return self.output.logits if slot.kind == "S" else self.output.gradients
        if slot.kind == "F":
            return price.forward
        if slot.kind == "W":
            return price.weight
        if slot.kind == "R":
            return {"recompute": slot.unit.again_s}
        seconds = add({}, price.backward)
        for category, value in price.weight.items() if self.schedule.splits_backward else ():
            seconds[category] = max(seconds[category] - value, 0.0)
        return seconds

    def compute(self, stage: int, slot: Slot, after: list[int]) -> int:
        """The task of a slot, its memory, and the send behind the last unit of a pass."""
        build = self.build
        profile, duration_s = self.price(slot)
        label = f"{slot.kind}{slot.micro_batch}"
        task = build.task(self.streams[stage]["compute"], label, profile, duration_s, after)
        self.passes.append((task, stage, slot.kind, slot.node % len(self.chunks), slot.micro_batch))
        self.hold(stage, slot, task)
        if self.late and slot.kind == ("W" if self.schedule.splits_backward else "B"):
            self.make_gradients(stage, slot, task)
        self.opened = task if not slot.joined else self.opened
        key = (slot.kind, stage if slot.kind in "ST" else slot.node, slot.micro_batch)
        if slot.opens:
            self.first[key] = self.opened
        if slot.closes:
            self.open_passes.append((key, stage, slot))
        return task

    def close(self, task: int) -> None:
        """Passes of one slot hand over what they made at its end."""
        for key, stage, slot in self.open_passes:
            self.sent[key] = self.send(stage, slot, task)
        self.open_passes = []

    def hold(self, stage: int, slot: Slot, task: int) -> None:
        """Activations are there from the forward pass (or, but for the input, from its repetition) to the backward
        pass, the operands of weight gradients, where they are computed later, to the W pass."""
        build, unit = self.build, slot.unit
        share = float(self.shares[slot.micro_batch % self.segments])
        saved, working = float(unit.saved_bytes) * share, float(unit.working_bytes) * share
        later = float(unit.weight_bytes) * share if self.schedule.splits_backward else 0.0
        dropped = 0.0
        if slot.kind in "FR":
            again = float(self.dropped[slot.node % len(self.chunks)])
            dropped = again * (saved - float(unit.head_bytes) * share)
        if slot.kind == "F":
            build.memory(task, "start", stage, "hbm", "activations", saved - dropped)
        elif slot.kind == "R":
            build.memory(task, "start", stage, "hbm", "activations", dropped)
        elif slot.kind == "B":
            build.memory(task, "start", stage, "hbm", "activations", working)
            build.memory(task, "end", stage, "hbm", "activations", later - working - saved)
        elif slot.kind == "W":
            build.memory(task, "end", stage, "hbm", "activations", -later)
        elif self.output is not None:
            when, sign = ("start", 1.0) if slot.kind == "S" else ("end", -1.0)
            build.memory(task, when, stage, "hbm", "activations", sign * self.output.held_bytes)

    def make_gradients(self, stage: int, slot: Slot, task: int) -> None:
        """Where gradients come late, the first backward pass of a chunk leaves them, and makes them while what was
        kept goes; the update gives them back."""
        if self.first_backward.setdefault(slot.node, slot.micro_batch) != slot.micro_batch:
            return
        build, chunk = self.build, self.chunks[slot.node % len(self.chunks)]
        build.memory(task, "end", stage, "hbm", "gradients", float(gradient_bytes(self.setting, slot.unit)))
        if slot.unit is chunk.whole and slot.kind == "B":
            more = float(first_backward_bytes(self.setting, chunk.layers) - slot.unit.working_bytes)
            build.memory(task, "start", stage, "hbm", "activations", more)
            build.memory(task, "end", stage, "hbm", "activations", -more)

    def copy(self, stage: int, slot: Slot) -> None:
        """A chunk's activations to the host behind its forward pass, or back before its backward pass."""
        share = float(self.shares[slot.micro_batch % self.segments])
        build, size_bytes = self.build, float(slot.unit.saved_bytes) * share
        seconds = size_bytes / host_bandwidth_bytes_per_s(self.setting)
        out = slot.kind == "O"
        last = self.last_compute.get(stage)
        source = self.ended[("F" if out else "O", slot.node, slot.micro_batch)]
        after = [source] if out or last is None else [source, last]
        profile = build.profile({"offload": 1.0})
        stream = build.stream(stage, "copy", self.weight)
        task = build.task(stream, f"{slot.kind}{slot.micro_batch}", profile, seconds, after)
        leaving, arriving = ("hbm", "host") if out else ("host", "hbm")
        build.memory(task, "end", stage, leaving, "activations", -size_bytes)
        build.memory(task, "start", stage, arriving, "activations", size_bytes)
        self.ended[(slot.kind, slot.node, slot.micro_batch)] = task

    def send(self, stage: int, slot: Slot, task: int) -> int:
        """Hands activations (or their gradients) to the rank of the next (previous) stage."""
        step, count = {"F": 1, "B": -1}.get(slot.kind, 0), len(self.chunks)
        if not step or not 0 <= slot.node % count + step < count:
            return task
        there = self.rank_of[slot.node + step]
        if there == stage:
            return task
        wire = min(stage, there) if abs(stage - there) == 1 else max(stage, there)
        stream = self.stream(stage, "pipeline", f"send {slot.kind}")
        label = f"send {slot.kind}{slot.micro_batch}"
        return self.build.task(stream, label, self.pipeline, self.hop_s[wire], [task])

    def connect(self) -> None:
        """Forward passes wait for the stage before, backward passes for the stage after, W for B, B for a copy."""
        count = len(self.chunks)
        for (kind, node, micro_batch), task in self.first.items():
            sources = []
            if kind == "F" and node % count:
                sources.append(("F", node - 1, micro_batch))
            elif kind == "B":
                sources.append(("B", node + 1, micro_batch) if node % count < count - 1 else ("F", node, micro_batch))
            for source in sources:
                if self.first[source] != task:
                    self.build.add_dependency(task, self.sent[source])
            if kind == "B" and ("L", node, micro_batch) in self.ended:
                self.build.add_dependency(task, self.ended["L", node, micro_batch])
        if self.output is not None:
            self.meet(self.output)

    def meet(self, output: OutputLayer) -> None:
        """The meetings of all ranks in a split output layer, on streams of their own."""
        build, final = self.build, len(self.chunks) - 1
        ranks = range(self.stages)
        streams = [build.stream(0, name, self.weight) for name in ("broadcast", "meeting", "second meeting")]
        for j in range(self.micro_batches):
            ready = [self.sent["F", final, j]]
            broadcast = build.task(streams[0], f"broadcast {j}", self.pipeline, output.broadcast_s, ready)
            for rank in ranks:
                build.add_dependency(self.first["S", rank, j], broadcast)
            logits = [self.sent["S", rank, j] for rank in ranks]
            seconds = output.meeting_s / self.schedule.barriers
            met = build.task(streams[1], f"meeting {j}", self.pipeline, seconds, logits)
            for rank in ranks:
                build.add_dependency(self.first["T", rank, j], met)
            if self.schedule.barriers == 2:
                gradients = [self.sent["T", rank, j] for rank in ranks]
                met = build.task(streams[2], f"second meeting {j}", self.pipeline, seconds, gradients)
            build.add_dependency(self.first["B", final, j], met)

    def update(self) -> None:
        """Optimizer step behind the global gradient norm, which waits for every stage's gradients; without that
        barrier each rank goes on when its own gradients are there (arXiv 2401.10241, section 4: post-validation).
        Broadcasts of the updated parameters that nothing runs beside follow on the same stream."""
        norm = self.build.profile({"data_communication": 1.0})
        self.reduce_copies()
        barrier = []
        if self.plan.optimizer_barrier:
            ends = [task for tasks in self.reductions.values() for task in tasks] or list(self.sent.values())
            seconds = norm_reduction_s(self.setting)
            barrier = [self.build.task(self.streams[0]["data"], "gradient norm", norm, seconds, after=ends)]
        optimizer = self.build.profile({"optimizer": 1.0})
        for stage in range(self.stages):
            duration_s = float(optimizer_s(self.setting, self.units_of(stage)))
            after = barrier or self.reductions[stage]
            stream = self.streams[stage]["compute"]
            task = self.build.task(stream, "optimizer", optimizer, duration_s, after=after)
            if self.late:
                made = float(update_bytes(self.setting, self.units_of(stage)))
                gradients = float(resident_bytes(self.setting, self.units_of(stage))["gradients"])
                self.build.memory(task, "start", stage, "hbm", "optimizer", made)
                self.build.memory(task, "end", stage, "hbm", "optimizer", -made)
                self.build.memory(task, "end", stage, "hbm", "gradients", -gradients)
            spread_s = sum(float(self.chunks[number].spread_s) for number in stages_of_rank(self.setting, stage))
            if spread_s:
                self.build.task(stream, "spread parameters", self.data, spread_s)

    def reduce_copies(self) -> None:
        """Gradients of the two copies of each stage, where micro-batches go both ways, are added up."""
        if self.schedule.routes == 1:
            return
        for rank in range(self.stages):
            seconds, last = copies_reduction_s(self.setting, self.units_of(rank)), self.last_compute[rank]
            self.reductions[rank].append(
                self.build.task(self.stream(rank, "data", "data"), "reduce copies", self.data, seconds, [last])
            )

    def units_of(self, rank: int) -> list[Unit]:
        held = [self.chunks[number].whole for number in stages_of_rank(self.setting, rank)]
        return [*held, self.output.unit] if self.output is not None else held


def lower(setting: Setting, global_batch: int) -> Lowered:
    """The program of one training step. Raises PlanError where the batch or the layers do not divide."""
    return _Lowering(setting, global_batch).run()
