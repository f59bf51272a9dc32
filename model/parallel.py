"""One model on one device or many, with the same code: DDP, FSDP2, precision and compilation.

DDP keeps the whole model on every device, FSDP2 a slice of every parameter; ``torchrun`` or Slurm starts a process a
device. See PyTorch's documentation of ``DistributedDataParallel`` and ``torch.distributed.fsdp.fully_shard``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from lumid.catalog.errors import LumidError, UsageError
from lumid.model.mae import MaskedAutoencoder
from lumid.model.recipe import ComputeSettings


@dataclass(frozen=True, slots=True)
class Parallel:
    """This process among those of a run: one a device, started by torchrun or alone."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009  a device is a value

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes what all share."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place, on every one of them."""
        if self.world > 1:
            distributed.all_reduce(values)
        return values

    def agree(self, failure: LumidError | None) -> None:
        """Go on when every process got here well; else raise on all of them. Nobody waits for one that has failed."""
        failed = torch.tensor([0 if failure is None else 1], device=self.device)
        self.sum(failed)
        if failure is not None:
            raise failure
        if failed.item():
            raise LumidError("another process of this run failed; its message is beside this one")


def micro_batches(batch_size: int, world: int, micro_batch: int | None) -> tuple[int, int]:
    """Images that a device holds at a time, and how often a step does: ``size × times × world`` is the batch.

    Raises :class:`UsageError` when the batch cannot be shared so.
    """
    if batch_size % world:
        raise UsageError(
            f"optimizer.batch_size {batch_size} cannot be shared by {world} processes: make it a multiple of {world}"
        )
    share = batch_size // world
    size = min(micro_batch or share, share)
    if share % size:
        raise UsageError(
            f"compute.micro_batch {size} does not divide the {share} images of a process "
            f"(batch_size {batch_size} over {world}): make it a divisor of {share}"
        )
    return size, share // size


def uses_bf16(settings: ComputeSettings, device: torch.device) -> bool:
    """Whether products are computed in bfloat16; weights and their updates are float32 in any case."""
    return settings.precision == "bf16" or (settings.precision == "auto" and device.type == "cuda")


def autocast(settings: ComputeSettings, device: torch.device) -> torch.autocast:
    """The context of a forward pass."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(settings, device))


def prepare(
    model: MaskedAutoencoder, settings: ComputeSettings, parallel: Parallel, batch: int, note: Callable[[str], None]
) -> nn.Module:
    """The model as the training loop calls it: compiled if so set, and over all devices.

    ``batch``: images a call; ``note`` is told when compilation does not work here, and why.
    """
    if settings.compile == "on" or (settings.compile == "auto" and parallel.device.type == "cuda"):
        reason = compile_in_place(model, settings, parallel, batch)
        if reason is not None:
            note(f"torch.compile does not work here, the model runs uncompiled: {reason}")
    if parallel.world == 1:
        return model
    if settings.parallel == "fsdp":
        return _sharded(model, settings, parallel)
    return DistributedDataParallel(
        model,
        device_ids=[parallel.device] if parallel.device.type == "cuda" else None,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )


def compile_in_place(model: MaskedAutoencoder, settings: ComputeSettings, parallel: Parallel, batch: int) -> str | None:
    """Compile the model and try it on a black batch, forward and backward. Returns why not, if it does not work; the
    model is then as it was.

    A sharded model is compiled block by block: what gathers a block's parameters stays between them.
    """
    parts = blocks(model) if settings.parallel == "fsdp" and parallel.world > 1 else [model]
    images = torch.zeros(batch, model.in_chans, model.image_size, model.image_size, device=parallel.device)
    noise = torch.rand(batch, model.patches, generator=torch.Generator().manual_seed(0)).to(parallel.device)
    try:
        for part in parts:
            part.compile()
        with autocast(settings, parallel.device):
            loss = model(images, noise).loss
        loss.backward()
    except Exception as error:  # a compiler may fail in any way; training without it is always possible
        for part in parts:
            part._compiled_call_impl = None  # what Module.compile() sets
        torch.compiler.reset()
        lines = str(error).strip().splitlines() or ["no reason given"]
        return f"{type(error).__name__}: {lines[0][:200]}"
    finally:
        model.zero_grad(set_to_none=True)
    return None


def blocks(model: MaskedAutoencoder) -> list[nn.Module]:
    """The transformer blocks of encoder and decoder."""
    return [*model.encoder.blocks, *model.decoder_blocks]


def _sharded(model: MaskedAutoencoder, settings: ComputeSettings, parallel: Parallel) -> nn.Module:
    mesh = init_device_mesh(parallel.device.type, (parallel.world,))
    # blocks are gathered in bfloat16, half the bytes; gradients are summed in float32
    dtype = torch.bfloat16 if uses_bf16(settings, parallel.device) else None
    for block in blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32))
    fully_shard(model, mesh=mesh)
    return model


@contextmanager
def synchronised(model: nn.Module, last: bool) -> Iterator[None]:
    """Gradients are exchanged in the ``last`` micro-batch of a step alone; before it they add up on each device."""
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    yield
