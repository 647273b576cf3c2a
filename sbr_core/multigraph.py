"""Ordered multigraphs of sessions: every step an edge of its own, in order of time, and the shortcuts beside it.

Shapes: B sessions, L positions (= node slots), D width. A node lives in the slot of its item's first position, as in
`sbr_core.graphs`. E = L - 1 is the most edges that a session can have, C the number of cells per session (below).
"""

from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class InLists(NamedTuple):
    """The in-neighbours of all nodes, packed so that a recurrent network reads every list in as few steps as it has.

    The nodes of a session stand in a queue, the longest list first. Step k handles the first E // (k + 1) places of
    every queue: no more nodes can have more than k in-edges, since a session has E edges in all. So the sizes of all
    steps are known from L alone, and the states of step k are the first rows of those of step k - 1.

    Args:
        widths: rows of every step: B times E // (k + 1) for k = 0..E - 1; they add up to B times C.
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
        queue = degree.argsort(dim=1, descending=True, stable=True)
        place = torch.empty_like(queue).scatter_(1, queue, self.slots.expand(B, L))  # (B, L): of each slot
        widths = [(L - 1) // steps for steps in range(1, L)]
        cells = sum(widths)
        before = (L - 1) // self.slots.clamp(min=1)  # (L,): 0 would divide by 0, and counts for nothing
        before = torch.where(self.slots > 0, before, 0).cumsum(0)  # cells of all steps before step k
        row = torch.arange(B, device=queue.device)[:, None]
        cell = torch.where(real, (before[step] + place.gather(1, target)) * B + row, cells * B)
        packed = torch.zeros(cells * B + 1, dtype=torch.long, device=cell.device)  # padding writes beyond the last one
        packed[cell] = row * L + source
        final = (before[(degree - 1).clamp(min=0)] + place) * B + row
        final = torch.where(degree > 0, final, cells * B).flatten()
        return InLists([B * width for width in widths], packed[:-1], final)
