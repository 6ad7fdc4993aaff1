"""Ranks: joining them, and collectives that are the identity on one process, so that no caller asks whether it is distributed.

Tensors travel by the group of their device (NCCL, gloo). What ranks say to one another between two steps (stop, go on, here is
why not) travels by a gloo group of its own, so that nothing waits for a GPU.

All of it is about the ranks that were started together, or about those of a ``Team`` while this process works ``within`` it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

import torch
import torch.distributed as torch_dist
from jaxtyping import Float
from torch import Tensor

from dinoforge.base.errors import ConfigError, RankLost, UserError

T = TypeVar("T")

_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells each of the processes that it starts."""


@dataclass(frozen=True, slots=True)
class Team:
    """Some of the ranks, with groups of their own; one alone has none."""

    ranks: tuple[int, ...]
    """Their numbers among all, ascending."""
    groups: dict[str, torch_dist.ProcessGroup]
    """``tensors`` of their devices (absent: all ranks'), ``words`` for what ranks say to one another, ``files`` for writing
    checkpoints."""


_all: list[Team] = []
"""All ranks, once they have joined."""
_team: ContextVar[Team | None] = ContextVar("team", default=None)
_apart = ContextVar("apart", default=False)


def launched() -> bool:
    """Whether this process is one of several that were started together (by torchrun, or with its variables set)."""
    return os.environ.get("WORLD_SIZE", "1") not in {"", "1"}


def active() -> bool:
    """Whether a process group of more than one rank exists, of which this process is not apart for now."""
    there = torch_dist.is_available() and torch_dist.is_initialized() and not _apart.get()
    return there and _many() > 1


@contextmanager
def apart() -> Iterator[None]:
    """Compute as if this process were alone: what one rank tries out, the others take no part in."""
    before = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(before)


@contextmanager
def within(team: Team) -> Iterator[None]:
    """Work with the ranks of this process's team alone, as if no others had been started."""
    before = _team.set(team)
    try:
        yield
    finally:
        _team.reset(before)


def _many() -> int:
    team = _team.get()
    return torch_dist.get_world_size() if team is None else len(team.ranks)


def _group(name: str) -> torch_dist.ProcessGroup | None:
    """That group of the team, or of all ranks."""
    team = _team.get() or next(iter(_all), None)
    return None if team is None else team.groups.get(name)


def rank() -> int:
    """Number of this process among those started together, or in its team; 0 is the one that speaks and writes."""
    team = _team.get()
    return rank_of_all() if team is None else team.ranks.index(rank_of_all())


def rank_of_all() -> int:
    """Number of this process among all, in a team or not."""
    return int(os.environ.get("RANK") or 0) if launched() else 0


def world() -> int:
    """Number of ranks that have joined."""
    return _many() if active() else 1


def local_rank() -> int:
    """Number of this process among those on the same machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK") or 0) if launched() else 0


def local_world() -> int:
    """Ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1) if launched() else 1


def files() -> torch_dist.ProcessGroup | None:
    """The group for writing checkpoints, which happens beside the training."""
    return _group("files")


@contextmanager
def joined() -> Iterator[None]:
    """Join the ranks that were started together, and leave them at the end; alone, nothing happens.

    Raises:
        ConfigError: Started as one of several, without saying which or where the others are.
        RankLost: Another rank ended before this one.
    """
    if not launched() or torch_dist.is_initialized():
        yield
        return
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that several processes run together, but {', '.join(missing)} "
            "is not set; start them with torchrun, or unset WORLD_SIZE."
        )
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus:
        torch.cuda.set_device(local_rank() % gpus)
    try:
        store, number, many = next(torch_dist.rendezvous("env://"))
        # On one machine torchrun keeps its store when it starts lost ranks again, with addresses of those that are gone.
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            store = torch_dist.PrefixStore(f"start{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        kinds = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        torch_dist.init_process_group(kinds, store=store, rank=number, world_size=many)
        _all.append(
            Team(tuple(range(many)), {name: torch_dist.new_group(backend="gloo") for name in ("words", "files")})
        )
        yield
    except RuntimeError as error:
        if isinstance(error, UserError) or not _is_lost(error):
            raise
        raise RankLost(
            "another rank ended, or its machine cannot be reached any more; its own message says why. The same command "
            f"goes on from the last checkpoint. ({' '.join(str(error).split())[:120]})"
        ) from None
    finally:
        _all.clear()
        if torch_dist.is_initialized():
            torch_dist.destroy_process_group()


def _is_lost(error: RuntimeError) -> bool:
    """Whether an error is what a collective says when a rank is gone."""
    text = str(error)
    return isinstance(error, torch_dist.DistError) or "gloo" in text or "onnection" in text or "Broken pipe" in text


def gather(value: T) -> list[T]:
    """Every rank's value, on every rank."""
    if not active():
        return [value]
    found: list[T | None] = [None] * world()
    torch_dist.all_gather_object(found, value, group=_group("words"))
    return found  # type: ignore[return-value]


def tell(value: T) -> T:
    """The first rank's value, on every rank."""
    if not active():
        return value
    box: list[T] = [value]
    torch_dist.broadcast_object_list(box, group=_group("words"), group_src=0)
    return box[0]


def counts(*mine: int) -> list[int]:
    """Sums over all ranks of a few numbers, quick enough for every step."""
    if not active():
        return list(mine)
    found = torch.tensor(mine)
    torch_dist.all_reduce(found, group=_group("words"))
    return [int(count) for count in found]


def together(work: Callable[[], T]) -> T:
    """Work that every rank does; one that fails with a user's error makes all fail, with the same error.

    Raises:
        UserError: That of the lowest rank that failed, which its attribute ``rank`` names.
    """
    if not active():
        return work()
    failed: UserError | None = None
    try:
        done = work()
    except UserError as error:
        failed = error
    for number, found in enumerate(gather(failed)):
        if found is not None:
            found.rank = number
            raise found from None
    return done


def leading(work: Callable[[], T]) -> T:
    """Work that the first rank does; all have its result, or its error."""
    if not active():
        return work()
    return tell(together(lambda: work() if rank() == 0 else None))  # type: ignore[return-value]


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that is spread over ranks; any other tensor as it is."""
    return tensor.to_local() if _is_spread(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is spread over ranks, put together on every rank; any other tensor as it is."""
    return tensor.full_tensor() if _is_spread(tensor) else tensor


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """This rank's part of ``value``, which every rank has whole, spread as ``like`` is; all of it where that is not spread."""
    if not _is_spread(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    # Without a source no rank sends anything.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None).to_local()


def _is_spread(tensor: Any) -> TypeGuard[Any]:
    # torch takes a second to import its DTensor, and there is none where nobody has.
    return hasattr(tensor, "full_tensor")


def all_sum(value: Tensor) -> Tensor:
    """Sum over all ranks, without gradient; a new tensor."""
    if not active():
        return value
    total = value.detach().clone()
    torch_dist.all_reduce(total, group=_group("tensors"))
    return total


def every(value: Tensor) -> list[Tensor]:
    """Every rank's tensor, all of one shape, on every rank, without gradient."""
    if not active():
        return [value]
    found = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(world())]
    torch_dist.all_gather(found, value.detach().contiguous(), group=_group("tensors"))
    return found


def mesh(kind: str) -> Any:
    """The ranks as torch wants them for what is spread over them, on that kind of device."""
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

    group = _group("tensors")
    return init_device_mesh(kind, (world(),)) if group is None else DeviceMesh.from_group(group, kind)


def all_mean(value: Tensor) -> Tensor:
    """Mean over all ranks, without gradient."""
    return all_sum(value) / world() if active() else value


def all_logsumexp(value: Float[Tensor, "N K"], *, dim: int) -> Float[Tensor, "..."]:
    """``log(sum(exp(value)))`` over ``dim`` of all ranks' rows, ``dim`` kept with length 1; ranks may hold no row."""
    if not active():
        return value.logsumexp(dim, keepdim=True)
    shape = [length if axis != dim % value.ndim else 1 for axis, length in enumerate(value.shape)]
    # -inf cannot be subtracted from itself, so where there is no row, or nothing else, the lowest finite number stands.
    lowest = value.new_full(shape, torch.finfo(value.dtype).min)
    largest = value.detach().amax(dim, keepdim=True).maximum(lowest) if value.shape[dim] else lowest
    torch_dist.all_reduce(largest, torch_dist.ReduceOp.MAX, group=_group("tensors"))
    return largest + all_sum((value - largest).exp().sum(dim, keepdim=True)).log()
