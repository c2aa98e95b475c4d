"""Several processes that train one model: each works on its share of a batch and holds its share of the weights.

Weights, gradients and optimizer state are split by FSDP2 (`fully_shard`, after ZeRO-3, arXiv 1910.02054); with LoRA
each process holds the frozen model, and the adapters' gradients are summed. Losses are weighted by their share of the
whole batch, so gradients are summed over the processes and never averaged. Alone, nothing here starts
torch.distributed.
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

T = TypeVar("T")

# The main process may write a large checkpoint, or wait for a judge, while the others wait for it.
_TIMEOUT = timedelta(hours=4)
_LOST_PEER_ERRORS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket Timeout")


class Rendezvous:
    """The processes that torchrun, accelerate or `launch` started, before they work together."""

    def __init__(self) -> None:
        self._store, self._rank, self._world = next(rendezvous("env://", timeout=_TIMEOUT))

    def first_to_fail(self) -> bool:
        """True for the first process that asks: the one that tells how the run failed."""
        return bool(self._store.add("rlaif: failed", 1) == 1)

    def join(self) -> None:
        """Become one of them.

        Raises:
            UsageError: there are fewer GPUs than processes.
        """
        # Before CUDA has been looked at: so that engines, too, see no other GPU than that of their process.
        gpus = torch.cuda.device_count()
        if gpus:
            number, count = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
            place = assigned_gpu(number, count, gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
            os.environ |= {"CUDA_VISIBLE_DEVICES": place, "LOCAL_RANK": "0"}
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, store=self._store, rank=self._rank, world_size=self._world, timeout=_TIMEOUT)


def assigned_gpu(number: int, count: int, gpus: int, visible: str | None) -> str:
    """The GPU of process `number` of `count` on a machine, `visible` being the names of its GPUs where they are said.

    Raises:
        UsageError: there are fewer GPUs than processes.
    """
    if count > gpus:
        raise UsageError(
            f"every process needs a GPU of its own: {count} processes, {gpus} GPUs", hint="fewer processes"
        )
    return visible.split(",")[number].strip() if visible else str(number)


def leave() -> None:
    """The work is done in all processes."""
    dist.barrier()
    dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process is the one that writes files."""
    return rank() == 0


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says no more than that another process is gone."""
    return isinstance(error, dist.DistError) or any(text in str(error) for text in _LOST_PEER_ERRORS)


# ------------------------------------------------------------------------------------------------ values


def broadcast_from_main(compute: Callable[[], T]) -> T:
    """What `compute` gives in the main process, in all of them. Where it fails there, the others end too."""
    if world_size() == 1:
        return compute()
    found = [compute() if is_main() else None]
    dist.broadcast_object_list(found, src=0)
    return found[0]  # type: ignore[return-value]


def local_share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of a sequence that all have."""
    return items[rank() :: world_size()]


def all_gather(share: Sequence[T]) -> list[T]:
    """The reverse of `local_share`, in all processes."""
    if world_size() == 1:
        return list(share)
    shares: list[Any] = [None] * world_size()
    dist.all_gather_object(shares, list(share))
    return [shares[i % world_size()][i // world_size()] for i in range(sum(map(len, shares)))]


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum over the processes, in place and returned."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_numbers(numbers: Mapping[str, float]) -> dict[str, float]:
    """Each number's sum over the processes, which all have the same names."""
    return dict(zip(numbers, all_reduce(torch.tensor([*numbers.values()], dtype=torch.float64)).tolist(), strict=True))


# ------------------------------------------------------------------------------------------------ models


def shard(model: Any, dtype: torch.dtype) -> Any:
    """Split a model's weights over the processes, block by block; each block is whole only while it computes.

    Args:
        dtype: of the blocks while they compute (trained weights stay fp32, and so do sums of gradients).
    """
    if world_size() == 1:
        return model
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (world_size(),))
    low = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    names = set(model._no_split_modules or ())
    for block in [part for part in model.modules() if type(part).__name__ in names]:
        fully_shard(block, mesh=mesh, mp_policy=low if dtype != torch.float32 else MixedPrecisionPolicy())
    # Also after a forward without a backward: what is outside of the blocks would stay whole, and as it was then.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)  # sums, see the top
            part.set_force_sum_reduction_for_comms(True)
    # Training calls parts of a model; FSDP gathers the weights around calls of the model.
    model.compute = types.MethodType(_compute, model)
    register_fsdp_forward_method(model, "compute")
    return model


def _is_sharded(model: Any) -> bool:
    return isinstance(model, FSDPModule)


def _compute(model: Any, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    return function(model, *inputs).clone()  # FSDP hangs a hook on the output, which a view may lose


def with_gathered_weights(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of (model, inputs) that uses the model's parts, where the model may be sharded."""

    def run(model: Any, *inputs: Any) -> Tensor:
        found: Tensor = model.compute(function, *inputs) if _is_sharded(model) else function(model, *inputs)
        return found

    run.__doc__, run.__name__ = function.__doc__, function.__name__
    return run


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Of parameters that every process holds whole; FSDP sums those of sharded ones by itself."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if not isinstance(parameter, DTensor) and parameter.grad is not None:
            dist.all_reduce(parameter.grad)


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor of a sharded model or optimizer, whole, in every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_on_main(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, whole and contiguous, in the main process; nothing in the others. One at a time is gathered."""
    found = {}
    for name, tensor in tensors.items():
        gathered = full_tensor(tensor.detach())
        if is_main():
            found[name] = gathered.cpu().contiguous() if world_size() > 1 else gathered.contiguous()
    return found


def unshard(model: Any) -> Any:
    """A sharded model whole and on the CPU, in the main process; others, and all models elsewhere, as they are."""
    if not _is_sharded(model):
        return model
    weights = gather_on_main(model.state_dict())
    if not is_main():
        return model
    with torch.device("meta"):  # of the class behind those that `fully_shard` put before it
        kind: Any = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
        unsplit = kind(model.config)
    unsplit.load_state_dict(weights, assign=True)
    unsplit.tie_weights()
    unsplit._weight_conversions = getattr(model, "_weight_conversions", None)  # the names that it was loaded by
    return unsplit


def distribute_like(target: Tensor, value: Tensor | None) -> Tensor:
    """The main process's `value`, split as `target` is, or whole."""
    if world_size() == 1:
        assert value is not None
        return value
    given = torch.empty(target.shape, device=target.device) if value is None else value.to(target.device).float()
    if isinstance(target, DTensor):
        return distribute_tensor(given, target.device_mesh, target.placements)
    dist.broadcast(given, src=0)
    return given
