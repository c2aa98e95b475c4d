"""Data-parallel training: each process works on its share of a batch and holds its shard of the weights.

FSDP2 shards weights, gradients and optimizer state (`fully_shard`, after ZeRO-3, arXiv 1910.02054). With LoRA each
process holds the full frozen model, and the adapters' gradients are all-reduced. Losses are weighted by their share of
the global batch, so gradients are summed over the processes, never averaged. With a single process, every function
here is a no-op and torch.distributed is never initialised.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor

from rlaif_cli.errors import UsageError
from rlaif_cli.models.transformers_internals import block_classes, copy_weight_conversions

T = TypeVar("T")

# Long, because the other processes wait while the main one writes a large checkpoint or queries a judge.
_TIMEOUT = timedelta(hours=4)
_LOST_PEER_ERRORS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket Timeout")


class Rendezvous:
    """The store through which processes started by torchrun, accelerate or `launch` find each other."""

    def __init__(self) -> None:
        self._store, self._rank, self._world = next(rendezvous("env://", timeout=_TIMEOUT))

    def first_to_fail(self) -> bool:
        """True for the first process that calls it: only that one reports why the run failed."""
        return bool(self._store.add("rlaif: failed", 1) == 1)

    def join(self) -> None:
        """Initialise the process group, with one GPU per process if there are GPUs.

        Raises:
            UsageError: there are fewer GPUs than processes.
        """
        # Set before CUDA is initialised, so that engines in this process also see only its own GPU.
        gpus = torch.cuda.device_count()
        if gpus:
            local_rank, local_size = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
            gpu = assigned_gpu(local_rank, local_size, gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
            os.environ |= {"CUDA_VISIBLE_DEVICES": gpu, "LOCAL_RANK": "0"}
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, store=self._store, rank=self._rank, world_size=self._world, timeout=_TIMEOUT)


def assigned_gpu(local_rank: int, local_size: int, gpus: int, visible: str | None) -> str:
    """The GPU of one process of a machine, as a value for CUDA_VISIBLE_DEVICES.

    Args:
        local_rank: the process, from 0.
        local_size: number of processes on the machine.
        gpus: number of GPUs on the machine.
        visible: the present CUDA_VISIBLE_DEVICES.

    Raises:
        UsageError: there are fewer GPUs than processes.
    """
    if local_size > gpus:
        raise UsageError(
            f"every process needs its own GPU: {local_size} processes, {gpus} GPUs", hint="use fewer processes"
        )
    return visible.split(",")[local_rank].strip() if visible else str(local_rank)


def leave() -> None:
    """Wait until all processes are done, then destroy the process group."""
    dist.barrier()
    dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is rank 0, the process that writes files."""
    return rank() == 0


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error only means that another process has gone."""
    return isinstance(error, dist.DistError) or any(text in str(error) for text in _LOST_PEER_ERRORS)


# ------------------------------------------------------------------------------------------------ values


def broadcast_from_main(compute: Callable[[], T]) -> T:
    """Run `compute` on the main process only and broadcast its result; if it fails, the other processes end too."""
    if world_size() == 1:
        return compute()
    found = [compute() if is_main() else None]
    dist.broadcast_object_list(found, src=0)
    return found[0]  # type: ignore[return-value]


def local_share(items: Sequence[T]) -> Sequence[T]:
    """This process's share of a sequence that all processes have."""
    return items[rank() :: world_size()]


def all_gather(share: Sequence[T]) -> list[T]:
    """The full sequence on every process: the inverse of `local_share`."""
    if world_size() == 1:
        return list(share)
    shares: list[Any] = [None] * world_size()
    dist.all_gather_object(shares, list(share))
    return [shares[i % world_size()][i // world_size()] for i in range(sum(map(len, shares)))]


def all_reduce(tensor: Tensor) -> Tensor:
    """Sum over the processes, in place; also returned."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_numbers(numbers: Mapping[str, float]) -> dict[str, float]:
    """Each number summed over the processes; all must pass the same names."""
    return dict(zip(numbers, all_reduce(torch.tensor([*numbers.values()], dtype=torch.float64)).tolist(), strict=True))


# ------------------------------------------------------------------------------------------------ models


def shard(model: Any, dtype: torch.dtype) -> Any:
    """Shard a model's weights over the processes, block by block; a block is gathered only while it computes.

    Args:
        dtype: compute dtype of the blocks (trained weights and gradient reductions stay fp32).
    """
    if world_size() == 1:
        return model
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (world_size(),))
    low = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    names = block_classes(model)
    for block in [part for part in model.modules() if type(part).__name__ in names]:
        fully_shard(block, mesh=mesh, mp_policy=low if dtype != torch.float32 else MixedPrecisionPolicy())
    # Reshard after forward: otherwise, after a forward without a backward, weights outside the blocks would stay
    # gathered and go stale.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)  # sum, see the module docstring
            part.set_force_sum_reduction_for_comms(True)
    # Training calls parts of a model, but FSDP gathers weights only around registered methods.
    model.compute = types.MethodType(_compute, model)
    register_fsdp_forward_method(model, "compute")
    return model


def _is_sharded(model: Any) -> bool:
    return isinstance(model, FSDPModule)


def _compute(model: Any, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    return function(model, *inputs).clone()  # FSDP attaches a hook to the output, which a view may lose


def with_gathered_weights(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorates a function of (model, *inputs) that calls parts of a model: gathers the weights if it is sharded."""

    def run(model: Any, *inputs: Any) -> Tensor:
        found: Tensor = model.compute(function, *inputs) if _is_sharded(model) else function(model, *inputs)
        return found

    run.__doc__, run.__name__ = function.__doc__, function.__name__
    return run


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """All-reduce the gradients of unsharded parameters; FSDP reduces those of sharded ones itself."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if not isinstance(parameter, DTensor) and parameter.grad is not None:
            dist.all_reduce(parameter.grad)


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor on every process; gathers it if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_on_main(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather full, contiguous tensors on the main process, one at a time; the others get an empty dict."""
    found = {}
    for name, tensor in tensors.items():
        gathered = full_tensor(tensor.detach())
        if is_main():
            found[name] = gathered.cpu().contiguous() if world_size() > 1 else gathered.contiguous()
    return found


def unshard(model: Any) -> Any:
    """On the main process, a full copy of a sharded model on the CPU; otherwise the model unchanged."""
    if not _is_sharded(model):
        return model
    weights = gather_on_main(model.state_dict())
    if not is_main():
        return model
    with torch.device("meta"):  # the original class: `fully_shard` replaced it with a subclass
        kind: Any = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
        unsplit = kind(model.config)
    unsplit.load_state_dict(weights, assign=True)
    unsplit.tie_weights()
    copy_weight_conversions(model, unsplit)
    return unsplit


def distribute_like(target: Tensor, value: Tensor | None) -> Tensor:
    """Send the main process's `value` to all processes, sharded as `target` is, or full if it is not sharded."""
    if world_size() == 1:
        assert value is not None
        return value
    full = torch.empty(target.shape, device=target.device) if value is None else value.to(target.device).float()
    if isinstance(target, DTensor):
        return distribute_tensor(full, target.device_mesh, target.placements)
    dist.broadcast(full, src=0)
    return full
