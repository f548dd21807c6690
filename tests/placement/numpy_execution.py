"""Plays a placement on a tiny fp64 model: every rank holds its own arrays, collectives are explicit rings.

The model: layers of norm, an optional mix over the sequence, and a two-matrix MLP with a residual; Adam with
a master copy. Ranks hold only their shards; which collectives run is read from the communication list handed
in, so a list with one missing trains another model. The rings count the bytes each rank really sends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from placement.semantics import Collective, Communication, Phase, parameter_fetches
from placement.states import Axis, Dim, Placement, Span, State, StateBytes
from tests.placement.numpy_collectives import Vectors, World

BYTES = StateBytes(8, 8, 24)  # fp64 parameters and gradients; master, m and v
LEARNING_RATE, BETA1, BETA2, EPSILON = 0.05, 0.9, 0.8, 1e-3
Weights = list[dict[str, np.ndarray]]  # per layer: norm [h], up [h, f], down [f, h]


@dataclass(frozen=True)
class Problem:
    """A model and one global batch; `mixing` makes tokens depend on the whole sequence, as attention does."""

    layers: int = 2
    hidden: int = 8
    width: int = 16
    batch: int = 8
    sequence: int = 8
    mixing: bool = False
    seed: int = 0

    def weights(self) -> Weights:
        random = np.random.default_rng(self.seed)
        h, f = self.hidden, self.width
        return [{"norm": 1 + 0.1 * random.normal(size=h), "up": random.normal(size=(h, f)) / h**0.5,
                 "down": random.normal(size=(f, h)) / f**0.5} for _ in range(self.layers)]

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        shape = (self.batch, self.sequence, self.hidden)
        random = np.random.default_rng(self.seed + 1)
        return random.normal(size=shape), random.normal(size=shape)

    @property
    def mix(self) -> np.ndarray:
        """How much each position gives to the sum that every position receives: [1, sequence, 1]."""
        position = np.arange(self.sequence)
        return float(self.mixing) * np.cos(position)[None, :, None] / self.sequence


def normalise(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x * scale, scale


def normalise_backward(dy: np.ndarray, y: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return scale * (dy - y * (dy * y).mean(-1, keepdims=True))


class Execution:
    """A training run under a placement, with the communication lists of its two groups of weights.

    Groups: "matrix" (split by tensor parallelism) and "norm" (whole on the tensor axis).
    """

    def __init__(
        self, placement: Placement, degrees: dict[Axis, int], problem: Problem, micro_batches: int,
        lists: dict[str, Sequence[Communication]],
    ) -> None:
        self.world, self.problem, self.placement = World(degrees), problem, placement
        self.micro_batches, self.lists = micro_batches, lists
        self.of = {"matrix": placement, "norm": placement.holding_whole(Axis.TENSOR)}
        self.sequence_parallel = placement.partition.get(Axis.TENSOR) is Dim.SEQUENCE
        weights = problem.weights()
        start = {g: {r: self.local(weights, g, r) for r in self.world.ranks} for g in self.of}
        self.size = {g: len(start[g][0]) for g in self.of}
        self.rest = {g: self.pieces(g, start[g], State.PARAMETERS) for g in self.of}
        self.optimizer = {
            g: {r: np.stack([piece, 0 * piece, 0 * piece]) for r, piece in
                self.pieces(g, start[g], State.OPTIMIZER).items()} for g in self.of
        }
        self.second: dict[str, Vectors] = {}
        self.peak_resident: dict[State, int] = {}

    def local(self, weights: Weights, group: str, rank: int) -> np.ndarray:
        """The flat vector of the weights of one rank's stage and tensor shard."""
        place, degrees = self.world.coordinates[rank], self.world.degrees
        deep = self.problem.layers // degrees[Axis.PIPELINE]
        mine = weights[place[Axis.PIPELINE] * deep:][:deep]
        if group == "norm":
            return np.concatenate([layer["norm"] for layer in mine])
        t, i = degrees[Axis.TENSOR], place[Axis.TENSOR]
        return np.concatenate([part.ravel() for layer in mine for part in (
            np.split(layer["up"], t, 1)[i], np.split(layer["down"], t, 0)[i])])

    def unpacked(self, copies: dict[str, Vectors], rank: int) -> Weights:
        """Inverse of `local`, from the whole copies a rank computes with."""
        h, f = self.problem.hidden, self.problem.width // self.world.degrees[Axis.TENSOR]
        norms = copies["norm"][rank].reshape(-1, h)
        matrices = copies["matrix"][rank].reshape(-1, 2, h * f)
        return [{"norm": norm, "up": up.reshape(h, f), "down": down.reshape(f, h)}
                for norm, (up, down) in zip(norms, matrices, strict=True)]

    def held(self, group: str, state: State) -> list[Axis]:
        """The axes that cut the flat vector for a state, inner to outer."""
        split = self.of[group].split_axes()
        return [axis for axis in self.of[group].sharded_axes(state) if axis not in split]

    def piece(self, group: str, rank: int, axes: Sequence[Axis]) -> slice:
        start, length = 0, self.size[group]
        for axis in axes:
            length, rest = divmod(length, self.world.degrees[axis])
            assert rest == 0, "choose sizes that divide"
            start += self.world.coordinates[rank][axis] * length
        return slice(start, start + length)

    def pieces(self, group: str, vectors: Vectors, state: State) -> Vectors:
        axes = self.held(group, state)
        return {rank: vector[self.piece(group, rank, axes)].copy() for rank, vector in vectors.items()}

    def found(self, group: str, state: State, phase: Phase, per: Span | None = None,
              collective: Collective | None = None) -> list[Communication]:
        return [one for one in self.lists[group] if one.state is state and one.phase is phase
                and per in (None, one.per) and collective in (None, one.collective)]

    def host(self, group: str, state: State, phase: Phase, collective: Collective, nbytes: int) -> bool:
        """Moves bytes over the host link of every rank, if the list says so."""
        moves = self.found(group, state, phase, collective=collective)
        for one in moves:
            for rank in self.world.ranks:
                self.world.count(one, rank, nbytes)
        return bool(moves)

    # collectives on full-length vectors of which a rank's valid part is piece(axes)

    def gather(self, group: str, work: Vectors, axes: list[Axis], one: Communication) -> list[Axis]:
        collect = self.world.broadcasts if one.collective is Collective.BROADCAST else self.world.all_gather
        chunks = collect(one, {r: work[r][self.piece(group, r, axes)] for r in work})
        for members in self.world.groups(one.axes, list(work)):
            for rank in members:
                for chunk, member in zip(chunks[rank], members, strict=True):
                    work[rank][self.piece(group, member, axes)] = chunk
        return [axis for axis in axes if axis not in one.axes]

    def reduce(self, group: str, work: Vectors, axes: list[Axis], one: Communication) -> list[Axis]:
        parts = {r: work[r][self.piece(group, r, axes)] for r in work}
        if one.collective is Collective.ALL_REDUCE:
            done = self.world.all_reduce(one, parts)
        else:
            to_all = one.collective is Collective.ALL_TO_ALL
            summed = self.world.all_to_all_sum if to_all else self.world.reduce_scatter
            done, axes = summed(one, parts), [*axes, *one.axes]
        for rank in work:
            work[rank][self.piece(group, rank, axes)] = done[rank]
        return axes

    def gathered(self, phase: Phase) -> dict[str, Vectors]:
        """The copies that ranks compute with: what they hold, zeros elsewhere, filled by the gathers."""
        copies = {}
        for group in self.of:
            axes, placement, lies = self.held(group, State.PARAMETERS), self.of[group], self.rest[group]
            if placement.secondary and phase is not Phase.FORWARD:
                axes, lies = list(placement.secondary), self.second[group]
            work = {r: np.zeros(self.size[group]) for r in self.world.ranks}
            nbytes = lies[0].nbytes
            here = not placement.offloaded(State.PARAMETERS) or self.host(
                group, State.PARAMETERS, phase, Collective.HOST_READ, nbytes)
            for rank in work:
                work[rank][self.piece(group, rank, axes)] = lies[rank] * here
            for one in self.found(group, State.PARAMETERS, phase, collective=Collective.ALL_GATHER):
                axes = self.gather(group, work, axes, one)
            copies[group] = work
            if placement.secondary and phase is Phase.FORWARD:
                kept = list(placement.secondary)
                self.second[group] = {r: work[r][self.piece(group, r, kept)].copy() for r in work}
        return copies

    def step(self) -> None:
        """One optimizer step over all micro-batches."""
        buffers = {g: {r: np.zeros(self.size[g]) for r in self.world.ranks} for g in self.of}
        buffers = {g: self.pieces(g, buffers[g], State.GRADIENTS) for g in self.of}
        keep, copies = self.placement.keep_gathered, None
        for index in range(self.micro_batches):
            if copies is None or keep is not Span.STEP:
                copies = self.gathered(Phase.FORWARD)
            outputs, caches = self.forward(copies, index)
            if keep is Span.PASS and parameter_fetches(self.placement):
                copies = self.gathered(Phase.BACKWARD)
            self.accumulate(buffers, self.backward(copies, outputs, caches, index))
        self.peak_resident = self.measure(copies, buffers)
        for group in self.of:
            self.update(group, buffers[group])

    def accumulate(self, buffers: dict[str, Vectors], gradients: dict[str, Vectors]) -> None:
        for group, work in gradients.items():
            axes: list[Axis] = []
            for one in self.found(group, State.GRADIENTS, Phase.BACKWARD, Span.MICRO_BATCH):
                if one.axis is not Axis.MEMORY:
                    axes = self.reduce(group, work, axes, one)
            arrived = not self.of[group].offloaded(State.GRADIENTS) or self.host(
                group, State.GRADIENTS, Phase.BACKWARD, Collective.HOST_WRITE, buffers[group][0].nbytes)
            for rank, piece in self.pieces(group, work, State.GRADIENTS).items():
                buffers[group][rank] += piece * arrived

    def measure(self, copies: dict[str, Vectors], buffers: dict[str, Vectors]) -> dict[State, int]:
        """Bytes of the arrays that rank 0 keeps at the end of a backward pass."""
        placement = self.placement
        kept = placement.keep_gathered is not Span.PASS and parameter_fetches(placement)
        arrays = {State.PARAMETERS: copies if kept else self.rest, State.GRADIENTS: buffers,
                  State.OPTIMIZER: self.optimizer}
        held = {
            state: sum(of_group[0].nbytes for of_group in by_group.values())
            * (not placement.offloaded(state) or bool(state is State.PARAMETERS and kept))
            for state, by_group in arrays.items()
        }
        held[State.PARAMETERS] += sum(of_group[0].nbytes for of_group in self.second.values())
        return held

    def update(self, group: str, buffers: Vectors) -> None:
        """Late reductions, Adam on the optimizer's shard, and the new parameters' way to their holders."""
        placement, ranks = self.of[group], self.world.ranks
        work, axes = {r: np.zeros(self.size[group]) for r in ranks}, self.held(group, State.GRADIENTS)
        by_host = placement.offloaded(State.OPTIMIZER) and placement.host_update
        late = [one for one in self.found(group, State.GRADIENTS, Phase.UPDATE)
                if one.axis is not Axis.MEMORY]
        on_host = placement.offloaded(State.GRADIENTS)
        here = not on_host or (by_host and not late) or self.host(
            group, State.GRADIENTS, Phase.UPDATE, Collective.HOST_READ, buffers[0].nbytes)
        for rank in ranks:
            work[rank][self.piece(group, rank, axes)] = buffers[rank] * here
        early = [a for one in self.found(group, State.GRADIENTS, Phase.BACKWARD, Span.MICRO_BATCH)
                 if one.collective in (Collective.REDUCE_SCATTER, Collective.ALL_TO_ALL) for a in one.axes]
        scattered = [*axes, *(axis for axis in early if axis not in axes)]
        for one in late:
            collect = self.gather if one.collective is Collective.ALL_GATHER else self.reduce
            scattered = collect(group, work, scattered, one)
        gradients = self.pieces(group, work, State.OPTIMIZER)
        arrived = not by_host or (on_host and not late) or self.host(
            group, State.GRADIENTS, Phase.UPDATE, Collective.HOST_WRITE, gradients[0].nbytes)
        self.adam(group, {rank: gradient * arrived for rank, gradient in gradients.items()})
        self.publish(group)

    def adam(self, group: str, gradients: Vectors) -> None:
        """The update: in place where the optimizer lies, or staged through the device."""
        placement, nbytes = self.of[group], self.optimizer[group][0].nbytes
        in_place = not placement.offloaded(State.OPTIMIZER) or placement.host_update
        read, stored = (in_place or self.host(group, State.OPTIMIZER, Phase.UPDATE, way, nbytes)
                        for way in (Collective.HOST_READ, Collective.HOST_WRITE))
        for rank in self.world.ranks:
            state = self.optimizer[group][rank] * read
            adam(state, gradients[rank])
            if stored:
                self.optimizer[group][rank] = state

    def publish(self, group: str) -> None:
        """Masters become parameters: on the rank that updated them, then on all that hold them."""
        placement, axes = self.of[group], self.held(group, State.OPTIMIZER)
        at_rest = self.held(group, State.PARAMETERS)
        gathers = [one for one in self.found(group, State.PARAMETERS, Phase.UPDATE) if one.axis is not Axis.MEMORY]
        on_host = placement.offloaded(State.PARAMETERS)
        by_host = placement.offloaded(State.OPTIMIZER) and placement.host_update
        direct = on_host == by_host and set(axes) <= set(at_rest)
        arrived = not by_host or direct or self.host(
            group, State.PARAMETERS, Phase.UPDATE, Collective.HOST_READ, self.optimizer[group][0][0].nbytes)
        work = {r: np.zeros(self.size[group]) for r in self.world.ranks}
        for rank in work:
            work[rank][self.piece(group, rank, at_rest)] = self.rest[group][rank]
            if arrived:
                work[rank][self.piece(group, rank, axes)] = self.optimizer[group][rank][0]
        for one in gathers:
            axes = self.gather(group, work, axes, one)
        if not on_host or direct or self.host(
                group, State.PARAMETERS, Phase.UPDATE, Collective.HOST_WRITE, self.rest[group][0].nbytes):
            self.rest[group] = self.pieces(group, work, State.PARAMETERS)

    # forward and backward, all ranks of a stage in lockstep

    def share(self, array: np.ndarray, rank: int, index: int) -> np.ndarray:
        """The part of the global batch that a rank has in micro-batch `index`: [batch, sequence, hidden]."""
        for dim, position in ((Dim.BATCH, 0), (Dim.SEQUENCE, 1)):
            for axis in reversed([a for a, d in self.placement.partition.items() if d is dim]):
                n = self.world.degrees[axis]
                array = np.split(array, n, position)[self.world.coordinates[rank][axis]]
        return np.split(array, self.micro_batches)[index]

    def stage(self, number: int) -> list[int]:
        return [r for r in self.world.ranks if self.world.coordinates[r][Axis.PIPELINE] == number]

    def handed(self, phase: Phase, arrays: Vectors, stage: int, step: int) -> Vectors:
        """What the ranks of the next stage (step 1, or -1 backward) receive; zeros when nothing is sent."""
        sends = self.found("matrix", State.ACTIVATIONS, phase, collective=Collective.POINT_TO_POINT)
        sources, targets = self.stage(stage), self.stage(stage + step)
        for one in sends:
            for rank in sources:
                self.world.count(one, rank, arrays[rank].nbytes)
        return {t: arrays[s] * bool(sends) for s, t in zip(sources, targets, strict=True)}

    def exchange(self, phase: Phase, axis: Axis, collective: Collective, arrays: Vectors) -> Vectors:
        """One activation collective over an axis; where the list lacks it, each rank goes on with its own."""
        listed = [one for one in self.found("matrix", State.ACTIVATIONS, phase, collective=collective)
                  if one.axis is axis]
        n, place = self.world.degrees[axis], self.world.coordinates
        if collective is Collective.ALL_REDUCE:
            return self.world.all_reduce(listed[0], arrays) if listed else arrays
        if collective is Collective.REDUCE_SCATTER:
            if listed:
                return self.world.reduce_scatter(listed[0], arrays, axis=1)
            return {r: np.split(array, n, 1)[place[r][axis]] for r, array in arrays.items()}
        if listed:
            chunks = self.world.all_gather(listed[0], arrays)
            return {r: np.concatenate(chunks[r], 1) for r in arrays}
        return {r: np.concatenate([array * (i == place[r][axis]) for i in range(n)], 1)
                for r, array in arrays.items()}

    def entering(self, phase: Phase, arrays: Vectors) -> Vectors:
        """What the split matrices see: the whole sequence."""
        if not self.sequence_parallel:
            return arrays
        return self.exchange(phase, Axis.TENSOR, Collective.ALL_GATHER, arrays)

    def leaving(self, phase: Phase, arrays: Vectors) -> Vectors:
        """The partial sums of the split matrices, summed."""
        collective = Collective.REDUCE_SCATTER if self.sequence_parallel else Collective.ALL_REDUCE
        return self.exchange(phase, Axis.TENSOR, collective, arrays)

    def mixed(self, n: Vectors) -> Vectors:
        if not self.problem.mixing:
            return n
        whole = self.exchange(Phase.FORWARD, Axis.CONTEXT, Collective.ALL_GATHER, n)
        return {r: n[r] + (whole[r] * self.problem.mix).sum(1, keepdims=True) for r in n}

    def mixed_backward(self, dn: Vectors) -> Vectors:
        if not self.problem.mixing:
            return dn
        given = {r: d.sum(1, keepdims=True) * self.problem.mix for r, d in dn.items()}
        back = self.exchange(Phase.BACKWARD, Axis.CONTEXT, Collective.REDUCE_SCATTER, given)
        return {r: dn[r] + back[r] for r in dn}

    def forward(self, copies: dict[str, Vectors], index: int) -> tuple[Vectors, dict]:
        inputs, caches = self.problem.data()[0], {}
        x = {r: self.share(inputs, r, index) for r in self.stage(0)}
        for number in range(self.world.degrees[Axis.PIPELINE]):
            ranks = self.stage(number)
            weights = {r: self.unpacked(copies, r) for r in ranks}
            for layer in range(len(weights[ranks[0]])):
                y = {r: normalise(x[r]) for r in ranks}
                n = self.mixed({r: y[r][0] * weights[r][layer]["norm"] for r in ranks})
                n = self.entering(Phase.FORWARD, n)
                a = {r: np.tanh(n[r] @ weights[r][layer]["up"]) for r in ranks}
                out = self.leaving(Phase.FORWARD, {r: a[r] @ weights[r][layer]["down"] for r in ranks})
                caches |= {(r, layer): (*y[r], n[r], a[r]) for r in ranks}
                x = {r: x[r] + out[r] for r in ranks}
            if number + 1 < self.world.degrees[Axis.PIPELINE]:
                x = self.handed(Phase.FORWARD, x, number, 1)
        return x, caches

    def backward(self, copies: dict[str, Vectors], outputs: Vectors, caches: dict, index: int) -> dict:
        targets, tokens = self.problem.data()[1], self.problem.batch * self.problem.sequence
        dx = {r: (out - self.share(targets, r, index)) / tokens for r, out in outputs.items()}
        gradients: dict[str, Vectors] = {"matrix": {}, "norm": {}}
        for number in reversed(range(self.world.degrees[Axis.PIPELINE])):
            ranks = self.stage(number)
            weights = {r: self.unpacked(copies, r) for r in ranks}
            parts: dict[int, list] = {r: [] for r in ranks}
            for layer in reversed(range(len(weights[ranks[0]]))):
                d_out, w = self.entering(Phase.BACKWARD, dx), {r: weights[r][layer] for r in ranks}
                d_n = {}
                for r in ranks:
                    _, _, n, a = caches[r, layer]
                    d_a = (d_out[r] @ w[r]["down"].T) * (1 - a**2)
                    parts[r].insert(0, {"up": np.einsum("bsh,bsf->hf", n, d_a),
                                        "down": np.einsum("bsf,bsh->fh", a, d_out[r])})
                    d_n[r] = d_a @ w[r]["up"].T
                d_n = self.mixed_backward(self.leaving(Phase.BACKWARD, d_n))
                for r in ranks:
                    y, scale = caches[r, layer][:2]
                    parts[r][0]["norm"] = (d_n[r] * y).sum((0, 1))
                    dx[r] = dx[r] + normalise_backward(d_n[r] * w[r]["norm"], y, scale)
            for r in ranks:
                gradients["norm"][r] = np.concatenate([part["norm"] for part in parts[r]])
                gradients["matrix"][r] = np.concatenate(
                    [part[key].ravel() for part in parts[r] for key in ("up", "down")])
            if number:
                dx = self.handed(Phase.BACKWARD, dx, number, -1)
        return gradients

    def error(self, other: Callable[[str, int], np.ndarray]) -> float:
        """Largest difference of parameters, masters and moments on any rank from `other(group, rank)`.

        `other` gives [4, n]: parameters, master, m, v of the rank's flat vector; relative to the largest.
        """
        worst = 0.0
        for group in self.of:
            for rank in self.world.ranks:
                whole = other(group, rank)
                parameters = whole[0, self.piece(group, rank, self.held(group, State.PARAMETERS))]
                optimizer = whole[1:, self.piece(group, rank, self.held(group, State.OPTIMIZER))]
                for mine, true in ((self.rest[group][rank], parameters), *zip(
                        self.optimizer[group][rank], optimizer, strict=True)):
                    worst = max(worst, float(np.abs(mine - true).max() / np.abs(true).max()))
        return worst


def adam(state: np.ndarray, gradient: np.ndarray) -> None:
    """In place on [master, m, v]; without bias correction, which changes nothing here."""
    master, m, v = state
    m += (1 - BETA1) * (gradient - m)
    v += (1 - BETA2) * (gradient**2 - v)
    master -= LEARNING_RATE * m / (np.sqrt(v) + EPSILON)


def single_device(problem: Problem, steps: int) -> tuple[Weights, Weights, Weights]:
    """The same training on one device, written on its own without any of the above: (weights, m, v)."""
    weights = problem.weights()
    moments = [[{k: np.zeros_like(w) for k, w in layer.items()} for layer in weights] for _ in range(2)]
    x0, target = problem.data()
    mix = np.ones((problem.sequence, 1)) * problem.mix[0].T + np.eye(problem.sequence)  # [to, from]
    for _ in range(steps):
        x, tape = x0, []
        for w in weights:
            y, scale = normalise(x)
            n = np.einsum("ts,bsh->bth", mix, y * w["norm"])
            a = np.tanh(n @ w["up"])
            tape.append((y, scale, n, a))
            x = x + a @ w["down"]
        dx, gradients = (x - target) / (problem.batch * problem.sequence), []
        for w, (y, scale, n, a) in zip(reversed(weights), reversed(tape), strict=True):
            d_a = (dx @ w["down"].T) * (1 - a**2)
            d_n = np.einsum("ts,bth->bsh", mix, d_a @ w["up"].T)
            gradients.insert(0, {"norm": (d_n * y).sum((0, 1)), "up": np.einsum("bsh,bsf->hf", n, d_a),
                                 "down": np.einsum("bsf,bsh->fh", a, dx)})
            dx = dx + normalise_backward(d_n * w["norm"], y, scale)
        for w, g, m, v in zip(weights, gradients, *moments, strict=True):
            for key in w:
                adam([w[key], m[key], v[key]], g[key])
    return weights, moments[0], moments[1]
