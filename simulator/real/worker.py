"""One rank of real runs (`python -m simulator.real.worker JOB.json` under torchrun): a plan played by torch.

A job is one run or {"device", "jobs": [...]}, several in one spawn. Each gives passes, steps, peak memory, losses.
"""

# mypy checks without torch: its modules are Any there
# mypy: disable-error-code="misc, no-untyped-call"
from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from costmodel.architecture import Attention, FeedForward, Layer, Model
from costmodel.calibration import pieces
from costmodel.calibration.ranks import process_group, rank_main
from placement.plan import Plan, micro_batches
from simulator.real import layouts, parallel
from simulator.real.checkpointing import saved
from simulator.real.memory import watched
from simulator.real.passes import Clock, watch_stage


def model_from(data: Mapping[str, Any]) -> Model:
    """The model of a job: `dataclasses.asdict` of a `Model`, equal layers made the same object again."""
    made: dict[str, Layer] = {}
    layers = tuple(made.setdefault(str(layer), Layer(Attention(**layer["attention"]), FeedForward(
        **layer["feed_forward"]), layer["norms"])) for layer in data["layers"])
    return Model(**{**data, "layers": layers, "mtp_layers": (), "assumed": tuple(data.get("assumed", ()))})

LEAST_SECOND_MOMENT = 1e-10  # below the squares of gradients of small models, above what rounds to zero


def main(job: Mapping[str, Any]) -> Any:
    """The result of a job on this rank, or the list of them for a job with `jobs`."""
    with process_group(job["device"]) as device:
        if "jobs" not in job:
            return run(job, device)
        return [run({"device": job["device"], **one}, device) for one in job["jobs"]]


class Training:
    """A laid out model with its optimizer and micro-batches on this rank."""

    def __init__(self, job: Mapping[str, Any], device: torch.device) -> None:
        options = dict(job["plan"])
        if isinstance(options.get("stage_layers"), list):
            options["stage_layers"] = tuple(options["stage_layers"])
        self.job, self.device, self.model, self.plan = job, device, model_from(job["model"]), Plan(**options)
        if found := layouts.unsupported(self.model, self.plan):
            raise ValueError("; ".join(found))
        if self.plan.gpus != dist.get_world_size():
            raise ValueError(f"the plan is for {self.plan.gpus} ranks, there are {dist.get_world_size()}")
        self.count = int(micro_batches(self.plan, job["global_batch"]))
        self.place = layouts.place_of(dist.get_rank(), self.plan)
        self.clock = Clock(device)
        mesh = parallel.mesh_of(self.plan, device)
        cuts = layouts.layers_of_stages(self.model, self.plan)
        self.stages = layouts.stages_of(self.place.pipeline, self.plan)
        self.parts = [parallel.part(self.model, self.plan, job["sequence"], *cuts[stage], mesh, device, job["seed"])
                      for stage in self.stages]
        self.optimizer = parallel.optimizer_of(self.parts, **job.get("adam", {}))
        self.schedule = self._schedule(mesh["pipeline"].get_group(), len(cuts)) if self.plan.pipeline > 1 else None
        self.losses: list[Tensor] = []

    def _schedule(self, group: Any, stages: int) -> Any:
        from torch.distributed.pipelining import PipelineStage
        from torch.distributed.pipelining.schedules import get_schedule_class

        made = [PipelineStage(part, stage, stages, self.device, group=group, **self._shapes(stage, stages))
                for stage, part in zip(self.stages, self.parts, strict=True)]
        for chunk, stage in enumerate(made):
            watch_stage(stage, chunk, self.clock)
        kind = get_schedule_class(layouts.TORCH_SCHEDULES[self.plan.schedule])
        single = self.plan.schedule in ("gpipe", "1f1b")
        return kind(made[0] if single else made, self.count, loss_fn=self._pipeline_loss, scale_grads=False)

    def _shapes(self, stage: int, stages: int) -> dict[str, Tensor]:
        """What a stage takes and gives, for DDP, which the pass that torch finds it out by would leave half reduced."""
        if layouts.sharding_of(self.plan) != "ddp":
            return {}
        tokens = torch.empty(self.plan.micro_batch, self.job["sequence"], dtype=torch.long, device="meta")
        kind = torch.bfloat16 if self.plan.precision == "bf16" else torch.float32
        hidden = torch.empty(*tokens.shape, self.model.hidden, dtype=kind, device="meta", requires_grad=True)
        logits = torch.empty(*tokens.shape, self.model.vocabulary, dtype=kind, device="meta", requires_grad=True)
        return {"input_args": hidden if stage else tokens, "output_args": logits if stage == stages - 1 else hidden}

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """This data rank's sequences of a step and their targets, (own batch, s) each; seeded, alike in any layout."""
        generator = torch.Generator().manual_seed(self.job["seed"] * 1_000_003 + step)
        shape = (self.job["global_batch"], self.job["sequence"] + 1)
        tokens = torch.randint(self.model.vocabulary, shape, generator=generator)
        own = tokens.chunk(int(self.plan.data))[self.place.data].to(self.device)
        return own[:, :-1].contiguous(), own[:, 1:].contiguous()

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Of a micro-batch, divided so that the micro-batches sum up to the mean over this rank's batch."""
        return pieces.loss(logits, targets) / self.count

    def _pipeline_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        with self.clock.longer():
            return self.loss(logits, targets)

    def step(self, tokens: Tensor, targets: Tensor) -> Tensor | None:
        """One training step; this rank's loss where it has one."""
        vocabulary = contextlib.nullcontext()
        if self.plan.tensor > 1:
            from torch.distributed.tensor.parallel import loss_parallel

            vocabulary = loss_parallel()
        with vocabulary:
            found = self._accumulated(tokens, targets) if self.schedule is None else self._piped(tokens, targets)
        for part in self.parts:
            parallel.average_experts(part, int(self.plan.data))
        with self.clock.timed("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        return found

    def _accumulated(self, tokens: Tensor, targets: Tensor) -> Tensor:
        module, losses = self.parts[0], []
        pairs = zip(tokens.split(self.plan.micro_batch), targets.split(self.plan.micro_batch), strict=True)
        for index, (inputs, wanted) in enumerate(pairs):
            with self._gradients_kept(module, index == self.count - 1):
                with self.clock.timed("F", 0, index):
                    loss = self.loss(module(inputs), wanted)
                with self.clock.timed("B", 0, index):
                    loss.backward()
            losses.append(_whole(loss.detach()))
        return torch.stack(losses).sum()

    def _gradients_kept(self, module: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
        """DDP reduces behind the last micro-batch alone; FSDP each time, since it holds gradients sharded."""
        name = layouts.sharding_of(self.plan)
        if name == "fsdp-no-reshard":
            module.set_reshard_after_backward(last)
        keeps: Any = module.no_sync() if name == "ddp" and not last else contextlib.nullcontext()
        return keeps  # type: ignore[no-any-return]

    def _piped(self, tokens: Tensor, targets: Tensor) -> Tensor | None:
        assert self.schedule is not None
        stages = 0 in self.stages, self.plan.chunks - 1 in self.stages
        losses: list[Tensor] = []
        self.schedule.step(*([tokens] if stages[0] else []), target=targets if stages[1] else None,
                           losses=losses if stages[1] else None, return_outputs=False)
        return torch.stack([_whole(loss.detach()) for loss in losses]).sum() if losses else None


def _whole(loss: Any) -> Tensor:
    tensor: Tensor = loss.full_tensor() if hasattr(loss, "full_tensor") else loss
    return tensor


def run(job: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Warm-up and timed steps, one more for the peak of memory, a checkpoint: the document of this rank."""
    training = Training(job, device)
    clock, steps, losses = training.clock, [], []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for index in range(job["warmup"] + job["steps"]):
        tokens, targets = training.batch(index)
        if index == job["warmup"]:
            clock.passes.clear()
            waited_s = _waited(training.parts)
        dist.barrier()
        clock.begin(index - job["warmup"])
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        losses.append(training.step(tokens, targets))
        clock.finish()
        if index == 0:
            settle(training.optimizer)
        steps.append({"step": index - job["warmup"], "wall_s": time.perf_counter() - wall_s,
                      "cpu_s": time.thread_time() - cpu_s})
    waited_s = _waited(training.parts) - waited_s
    for one, loss in zip(steps, _of_whole_batch(losses, training), strict=True):
        one["loss"] = loss
    timed = steps[job["warmup"]:]
    return {
        "rank": dist.get_rank(), "world": dist.get_world_size(), "device": job["device"],
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "plan": dict(job["plan"]), "passes": list(clock.passes), "steps": timed,
        "warmup_losses": [one["loss"] for one in steps[: job["warmup"]]],
        "communication_wall_s": waited_s / job["steps"] if training.plan.expert > 1 else None,
        "peak_memory_bytes": peak(training, job) if job.get("memory") else None,
        "checkpoint": _checkpoint(training) if job.get("checkpoint") else None,
        "busy": busy(timed),
    }


def settle(optimizer: torch.optim.Optimizer) -> None:
    """Second moments as after many steps, when every word has been seen: some libraries take twice as long for roots of
    zeros (MKL's), which words that no token had yet would be."""
    for state in optimizer.state.values():
        state["exp_avg_sq"].add_(LEAST_SECOND_MOMENT)


def _checkpoint(training: Training) -> dict[str, Any]:
    return saved(dict(zip(training.stages, training.parts, strict=True)), training.optimizer)


def _waited(parts: Sequence[nn.Module]) -> float:
    return sum((one.waited_s for part in parts for one in part.modules()
                if isinstance(one, parallel.ExpertParallel)), 0.0)


def _of_whole_batch(losses: Sequence[Tensor | None], training: Training) -> list[float | None]:
    """Means over the data ranks, None on ranks without the head."""
    summed = torch.stack([torch.zeros(()) if loss is None else loss.float().cpu() for loss in losses])
    has = losses[0] is not None
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (training.place, has, summed.tolist()))
    own = [found for place, other, found in gathered if other and place.tensor == 0]
    return [sum(each) / len(own) for each in zip(*own, strict=True)] if has else [None] * len(losses)


def peak(training: Training, job: Mapping[str, Any]) -> dict[str, int]:
    """Of one more step: what the allocator holds on CUDA (in the steps before), MemTracker by class on the CPU."""
    if job["device"] == "cuda":
        return {"total": torch.cuda.max_memory_allocated()}
    tokens, targets = training.batch(job["warmup"] + job["steps"])
    before = list(training.clock.passes)
    with watched(*training.parts, training.optimizer, tokens, targets) as watch:
        watch.phase("step")
        training.clock.before_forward = watch.again
        training.step(tokens, targets)
    training.clock.before_forward = lambda: None
    training.clock.passes[:] = before
    return dict(watch.peak)


def busy(steps: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """How busy the machine was: load, pressure on the CPU, wall over CPU time of the steps."""
    cpu_s = sum(step["cpu_s"] for step in steps)
    pressure = None
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/pressure/cpu") as file:
        pressure = float(file.readline().split("avg10=")[1].split()[0])
    return {"load": os.getloadavg()[0], "pressure_some_avg10": pressure,
            "wall_over_cpu": sum(step["wall_s"] for step in steps) / cpu_s if cpu_s else None}


if __name__ == "__main__":
    rank_main(main)
