"""The processes that train one run together, each with a GPU of its own (data parallel).

All of them go through the same program. Each computes its share of the micro-batches of an update; gradients are summed, so that
every process makes the same update, that of the whole batch. Only what trains is summed. Each process answers its share of a
split's examples.

m micro-batches of an update, W processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run. Without others nothing is communicated, and no bit changes."""

    rank: int = 0
    size: int = 1  # W

    @property
    def leads(self) -> bool:
        """Whether this process writes the run's files. The others write nothing."""
        return self.rank == 0

    def share(self, parts: Sequence[T]) -> Sequence[T]:
        """This process's share: neighbours in the order of the parts, of equal numbers, or one more for some."""
        return parts[self.rank * len(parts) // self.size : (self.rank + 1) * len(parts) // self.size]

    def sum_gradients(
        self, parameters: Iterable[nn.Parameter], tokens: int, losses: Sequence[Tensor]
    ) -> tuple[Tensor, int]:
        """Makes the gradient of each parameter that of the whole batch: the mean over all tokens.

        `tokens`: those of this process's share, over which its gradient is the mean. `losses`: of its micro-batches. Returns all
        losses, m, in the order of the micro-batches, and the number of all tokens.
        """
        if self.size == 1:
            return torch.stack(list(losses)), tokens
        every = self.each((tokens, torch.stack(list(losses)).cpu()))
        total = sum(count for count, _ in every)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients]) * (tokens / total)
        distributed.all_reduce(flat)
        for gradient, summed in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))
        return torch.cat([losses for _, losses in every]), total

    def each(self, value: T) -> list[T]:
        """The values of all processes, in their order."""
        values: list[Any] = [None] * self.size
        if self.size == 1:
            return [value]
        distributed.all_gather_object(values, value)
        return values

    def same(self, value: T) -> T:
        """The leader's value."""
        values = [value]
        if self.size > 1:
            distributed.broadcast_object_list(values, src=0)
        return values[0]

    def draw(self, seed: int, step: int) -> None:
        """Gives the processes other than the leader random streams of their own for this update. They depend on its number alone,
        so that a resume needs no state of theirs."""
        if not self.leads:
            torch.manual_seed(hash((seed, step, self.rank)))

    @contextmanager
    def running_statistics(self, model: nn.Module, parts: int) -> Iterator[None]:
        """A context for the update in which BatchNorms follow `parts` micro-batches, m, in all processes together.

        At its end their running statistics are those of one process that had seen all micro-batches in their order. With momentum
        1 - a, a process that has seen b of them moves a statistic s to  a^b s + c.  All together:  a^m s + sum of a^(later b) c.
        """
        norms = [one for one in model.modules() if isinstance(one, nn.BatchNorm2d) and one.training]
        if self.size == 1 or not norms:
            yield
            return
        before = [[buffer.clone() for buffer in statistics(norm)] for norm in norms]
        yield
        shares = [len(Ranks(rank, self.size).share(range(parts))) for rank in range(self.size)]
        own, later = shares[self.rank], sum(shares[self.rank + 1 :])
        for norm, old in zip(norms, before, strict=True):
            keep = 1 - (norm.momentum or 0.0)
            for now, then in zip(statistics(norm), old, strict=True):
                moved = (now - keep**own * then) * keep**later
                distributed.all_reduce(moved)
                now.copy_(keep**parts * then + moved)
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked += parts - own


ALONE = Ranks()


def statistics(norm: nn.BatchNorm2d) -> list[Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    return [norm.running_mean, norm.running_var]


def join_group(ranks: Ranks, meeting: str, device: torch.device) -> None:
    """Waits until all processes of the run are there. `meeting`: a file that none of them has yet, on a disk of this node."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, init_method=f"file://{meeting}", rank=ranks.rank, world_size=ranks.size)


def leave_group() -> None:
    """Leaves the group of processes, if there is one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def on_cpu(state: Mapping[str, Any]) -> dict[str, Any]:
    """The same nested dictionary with its tensors on the CPU."""
    return {
        key: on_cpu(value) if isinstance(value, Mapping) else value.cpu() if isinstance(value, Tensor) else value
        for key, value in state.items()
    }
