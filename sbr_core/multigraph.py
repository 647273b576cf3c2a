"""Ordered multigraphs of sessions: every step an edge of its own, in order of time, and the shortcuts beside it.

Shapes: B sessions, L positions (= node slots), D width. A node lives in the slot of its item's first position, as in
`sbr_core.graphs`. E = L - 1 is the most edges that a session can have.
"""

from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class InLists(NamedTuple):
    """The in-neighbours of all nodes, packed so that a recurrent network reads every list in as few steps as it has.

    The nodes stand in a queue, the longest list first, so that the states of a step are the first rows of those of the
    step before. On a CPU one queue holds the nodes of all sessions, and step k has a row for each of them with more
    than k in-edges. A GPU would have to wait for these numbers. There every session has a queue of its own, and step k
    handles its first E // (k + 1) places: no more nodes can have more than k in-edges, since a session has E edges in
    all. So the sizes of all steps are known from L alone.

    Args:
        widths: rows of every step.
        source: node slot (of the flattened B * L) that each row reads; rows beyond the end of a list read any node.
        final: row that holds the last state of each node's list; of a node without in-edges, the row after the last.
    """

    widths: list[int]
    source: Int[Tensor, "cells"]
    final: Int[Tensor, "slots"]


class Multigraph:
    """The ordered multigraph of every session of a batch; its parts are made when they are first asked for.

    No Python loop over sessions or positions, no host synchronisation.

    Args:
        items: (B, L) right-padded item ids.
        mask: (B, L) True on real clicks.

    Source: LESSR (Chen and Wong, KDD 2020) section 4.
    Example:
        >>> items = torch.tensor([[1, 2, 1, 3]])
        >>> Multigraph(items, items > 0).shortcuts.sum().item()
        7
    """

    def __init__(self, items: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]):
        self.items, self.mask = items, mask
        self.alias = (items[:, :, None] == items[:, None, :]).to(torch.int8).argmax(-1)  # (B, L): first position
        self.slots = torch.arange(items.shape[1], device=items.device)
        self.nodes = (self.alias == self.slots) & mask  # (B, L): slots that hold a node

    @cached_property
    def counts(self) -> Float[Tensor, "B L L"]:
        """How many steps lead from slot u to slot v, at [v, u]."""
        B, L = self.items.shape
        edge = self.alias[:, 1:] * L + self.alias[:, :-1]
        counts = torch.zeros(B, L * L, device=edge.device)
        return counts.scatter_add_(1, edge, self.mask[:, 1:].float()).view(B, L, L)

    @cached_property
    def steps(self) -> Bool[Tensor, "B L L"]:
        """True at [v, u] if a step leads from u to v, or u is v; slots without a node have their own edge only."""
        return (self.counts > 0) | torch.eye(len(self.slots), dtype=torch.bool, device=self.slots.device)

    @cached_property
    def shortcuts(self) -> Bool[Tensor, "B L L"]:
        """True at [v, u] if some click on u is no later than some click on v; so every node has one to itself.

        The first click on u is at position u: it is compared with the last click on v.
        """
        position = torch.where(self.mask, self.slots, 0)
        latest = torch.zeros_like(self.alias).scatter_reduce_(1, self.alias, position, "amax")  # (B, L)
        return (self.slots <= latest[:, :, None]) & self.nodes[:, None, :] & self.nodes[:, :, None]

    @cached_property
    def in_lists(self) -> InLists:
        """The in-neighbours of every node, oldest edge first, one entry per step."""
        B, L = self.items.shape
        source, target, real = self.alias[:, :-1], self.alias[:, 1:], self.mask[:, 1:]  # (B, E)
        together = (target[:, :, None] == target[:, None, :]) & real[:, None, :]  # (B, E, E)
        step = together.tril(-1).sum(-1)  # (B, E): how many edges came into the same node before
        degree = torch.zeros_like(self.alias).scatter_add_(1, target, real.long())  # (B, L)
        place, sizes, widths = (_bounded if degree.is_cuda else _counted)(degree)
        before, cells = sizes.cumsum(0) - sizes, sum(widths)  # (L,): cells of all steps before step k
        cell = torch.where(real, before[step] + place.gather(1, target), cells)
        packed = torch.zeros(cells + 1, dtype=torch.long, device=cell.device)  # padding writes beyond the last one
        packed[cell] = torch.arange(B, device=cell.device)[:, None] * L + source
        final = torch.where(degree > 0, before[(degree - 1).clamp(min=0)] + place, cells).flatten()
        return InLists(widths, packed[:-1], final)


def _counted(degree: Int[Tensor, "B L"]) -> tuple[Int[Tensor, "B L"], Int[Tensor, "L"], list[int]]:
    """Row of each node in every step, rows of step k = 0..L - 1, and those of the steps that have any, on the host.

    An empty step ends them, if longer lists could have been: then the recurrent weights have a gradient, of zeros, in
    every batch, and an optimizer with momentum moves them.
    """
    flat, (_, L) = degree.flatten(), degree.shape
    place = torch.empty_like(flat)
    place[flat.argsort(descending=True, stable=True)] = torch.arange(len(flat))
    sizes = len(flat) - torch.bincount(flat, minlength=L).cumsum(0)
    steps = int(flat.max()) + 1
    return place.view_as(degree), sizes, sizes[: min(steps, L - 1)].tolist()


def _bounded(degree: Int[Tensor, "B L"]) -> tuple[Int[Tensor, "B L"], Int[Tensor, "L"], list[int]]:
    """The same without a wait for the device, with room for every list that could be."""
    B, L = degree.shape
    queue = degree.argsort(dim=1, descending=True, stable=True)
    slots = torch.arange(L, device=degree.device)
    place = torch.empty_like(queue).scatter_(1, queue, slots.expand(B, L))  # (B, L): of each slot in its session
    place = place * B + torch.arange(B, device=degree.device)[:, None]
    return place, B * ((L - 1) // (slots + 1)), [B * ((L - 1) // steps) for steps in range(1, L)]
