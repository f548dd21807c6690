"""Peak memory of a real step by class, as torch's MemTracker counts it: every storage, rounded up to 512 bytes.

MemTracker stands in a private module (torch.distributed._tools), hence the guard. It sees what the dispatcher
allocates, not the workspace within a kernel. Under FakeTensorMode a step of a model of any size runs without memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from costmodel import architecture as arch
from costmodel.calibration import pieces
from simulator.real.model import Decoder, initialise

CLASSES = {"Total": "total", "Parameter": "parameters", "Gradient": "gradients", "Optstate": "optimizer",
           "Activation": "activations", "Temp": "temporary", "Buffer": "buffers", "Other": "other"}


class TrackerError(RuntimeError):
    """This torch has no MemTracker of the known form."""


def _new_tracker() -> Any:
    try:
        from torch.distributed._tools.mem_tracker import MemTracker

        tracker = MemTracker()
        tracker._peak_mem, tracker._peak_mem_snap  # noqa: B018
    except (ImportError, AttributeError) as error:
        raise TrackerError(
            f"torch {torch.__version__} has no torch.distributed._tools.mem_tracker.MemTracker as 2.13 has it: {error}"
        ) from error
    return tracker


class Watch:
    """Peaks of the phases of a step; a phase lasts until the next is opened. Sizes in bytes by class (`CLASSES`)."""

    def __init__(self, tracker: Any) -> None:
        self._tracker = tracker
        self._open = ""
        self.phases: dict[str, dict[str, int]] = {}

    def phase(self, name: str) -> None:
        """Closes the open phase and starts one; a name used again keeps its largest peak. "" watches nothing."""
        peak = self._snapshot("peak")
        if self._open and peak["total"] > self.phases.get(self._open, {"total": -1})["total"]:
            self.phases[self._open] = peak
        self._open = name
        now = self._tracker.get_tracker_snapshot("current")
        self._tracker._peak_mem_snap = now
        self._tracker._peak_mem = {device: sizes["Total"] for device, sizes in now.items()}

    def again(self) -> None:
        """Before the model runs again within one watch: modules may then be called anew."""
        self._tracker.reset_mod_stats()

    @property
    def peak(self) -> dict[str, int]:
        """The highest phase."""
        return max(self.phases.values(), key=lambda sizes: sizes["total"])

    def _snapshot(self, kind: str) -> dict[str, int]:
        found = self._tracker.get_tracker_snapshot(kind)
        sizes = dict.fromkeys(CLASSES.values(), 0)
        for of_device in found.values():
            for key, size_bytes in of_device.items():
                sizes[CLASSES[getattr(key, "value", key)]] += int(size_bytes)
        return sizes


@contextmanager
def watched(*external: Any) -> Iterator[Watch]:
    """Tracks what happens inside; `external` are modules, optimizers and tensors that were made before."""
    tracker = _new_tracker()
    tracker.track_external(*external)
    with tracker:
        watch = Watch(tracker)
        watch.phase("")
        yield watch
        watch.phase("")


@contextmanager
def _made_in(dtype: torch.dtype) -> Iterator[None]:
    """Modules are made in this type; fake parameters cannot be cast later."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def recomputed(decoder: Decoder) -> Decoder:
    """The decoder with every layer under activation checkpointing: its input is kept, all else made again."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    for number, layer in decoder.layers.items():
        decoder.layers[number] = checkpoint_wrapper(layer)
    return decoder


def step(decoder: nn.Module, optimizer: torch.optim.Optimizer, batches: Sequence[tuple[Tensor, Tensor]],
         watch: Watch | None = None) -> None:
    """One training step over micro-batches (tokens, targets), gradients summed up and given back behind the update."""
    for tokens, targets in batches:
        if watch:
            watch.again()
            watch.phase("forward")
        loss = pieces.loss(decoder(tokens), targets) / len(batches)
        if watch:
            watch.phase("backward")
        loss.backward()
        del loss
    if watch:
        watch.phase("optimizer")
    optimizer.step()
    optimizer.zero_grad()


def step_peaks(model: arch.Model, sequence: int, micro_batch: int, micro_batches: int = 1, *, recompute: str = "none",
               dtype: torch.dtype = torch.float32, device: str = "cpu", fake: bool = True) -> Watch:
    """Peaks by phase of the second step of a single process with AdamW; `recompute` "none" or "full".

    The first step makes the optimizer's states. `fake`: nothing is allocated or computed.
    Raises NotBuildable, TrackerError.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode() if fake else nullcontext())
        stack.enter_context(torch.device(device))
        stack.enter_context(_made_in(dtype))
        decoder = Decoder(model, sequence)
        if not fake:
            initialise(decoder, 0)
        decoder = recomputed(decoder) if recompute == "full" else decoder
        optimizer = torch.optim.AdamW(decoder.parameters())
        batches = [(torch.zeros(micro_batch, sequence, dtype=torch.long), torch.zeros(
            micro_batch, sequence, dtype=torch.long)) for _ in range(micro_batches)]
        step(decoder, optimizer, batches)
        with watched(decoder, optimizer) as watch:
            step(decoder, optimizer, batches, watch)
    return watch
