"""What finding the best items costs against the size of the catalogue: exactly, and by an index, with its recall.

Times are of the processor: on one thread, what a clock shows on a machine that does nothing else.

Shapes: V items, D width, B queries, C clusters.
"""

import statistics
import time
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sbr_core.item_index import Index, exact_top, recall
from sbr_core.models import build
from sbr_core.models.base import SessionModel
from sbr_core.similarity import unit

SIZES = (10_000, 30_000, 100_000, 1_000_000)
INDEXED = 1_000_000  # items up to which an index is built; the graph of so many takes minutes
KINDS = ("hnsw", "ivf")
EFFORTS = (16, 64, 256)
OF_CLUSTER = 100  # items
SHELF = 20  # items asked for


def clustered(
    num_items: int, queries: int, dim: int = 64, seed: int = 0
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "V D"]]:
    """Queries and items of length 1 around the same random centres, of `OF_CLUSTER` items each.

    Centres and what is added to them are standard normal, so two items of a cluster have a cosine of one half. Vectors
    without clusters have no neighbours to speak of, and an index that misses them misses little.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(1, num_items // OF_CLUSTER), dim, generator=generator)

    def around(count: int) -> Tensor:
        which = torch.randint(len(centres), (count,), generator=generator)
        return unit(centres[which] + torch.randn(count, dim, generator=generator))

    return around(queries), around(num_items)


def retrieval_study(sizes: tuple[int, ...] = SIZES, indexed: int = INDEXED, queries: int = 200, dim: int = 64) -> dict:
    """Milliseconds a query, recall of the best 20 and size, exactly and by every index and effort, on `clustered`
    vectors.

    Args:
        indexed: items up to which indices are built.

    Returns:
        "retrieval", one row a size, kind and effort: ms_together (a query among `queries`), ms_alone (a query on its
        own), recall, megabytes, build_seconds; beside it the threads, the items of a cluster and of a shelf.
    """
    rows = []
    for size in sizes:
        query, items = clustered(size, queries, dim)
        rows += [
            {"items": size, "dim": dim, "queries": queries} | row for row in measured(query, items, size <= indexed)
        ]
    return {
        "study": "retrieval", "retrieval": rows, "threads": torch.get_num_threads(), "of_cluster": OF_CLUSTER,
        "shelf": SHELF, "vectors": "clustered",
    }  # fmt: skip


def measured(query: Float[Tensor, "B D"], items: Float[Tensor, "V D"], indexed: bool = True) -> list[dict]:
    """The rows of one catalogue."""
    _, exact = exact_top(query, items, SHELF)
    row = {"kind": "exact", "effort": None, "recall": 1.0, "megabytes": items.nbytes / 1e6, "build_seconds": 0.0}
    rows = [row | _milliseconds(lambda some: exact_top(some, items, SHELF), query)]
    for kind in KINDS if indexed else ():
        begun = time.process_time()
        index = Index(_model(items), kind)
        built = {"megabytes": index.megabytes, "build_seconds": time.process_time() - begun}
        for effort in EFFORTS:
            index.search_with(effort)
            row = {"kind": kind, "effort": effort, "recall": recall(index.top(query, SHELF)[1], exact)} | built
            rows.append(row | _milliseconds(lambda some, index=index: index.top(some, SHELF), query))
    return rows


def _model(items: Float[Tensor, "V D"]) -> SessionModel:
    """A model whose item table this is: what an index is made from."""
    model = build("stamp", len(items), dim=items.shape[1])
    model.table.data[:-1] = items
    return model


def _milliseconds(search: Callable[[Tensor], object], query: Float[Tensor, "B D"], repeats: int = 3) -> dict:
    """Of a query: among all of them at once, and alone (the median of a tenth of them)."""
    together = [_seconds(search, query) for _ in range(repeats)]
    alone = [_seconds(search, query[at : at + 1]) for at in range(0, len(query), 10)]
    return {
        "ms_together": 1e3 * statistics.median(together) / len(query),
        "ms_alone": 1e3 * statistics.median(alone),
    }


def _seconds(search: Callable[[Tensor], object], query: Tensor) -> float:
    begun = time.process_time()
    search(query)
    return time.process_time() - begun
