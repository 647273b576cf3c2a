"""The k best items for many queries: exactly, a piece of the catalogue at a time, or by an index of the item vectors.

Only where a score is the product of one query vector with one vector of the item: `SessionModel.search_items` says so.

Shapes: B queries, V items, W width of the vectors, K items of a shelf.
"""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sbr_core.files import replaced
from sbr_core.models.base import SessionModel

PIECE = 2**17  # items scored at a time
TRAINED = 64  # vectors of a cell, on average, from which its centre is made
KINDS = {"flat": "Flat", "hnsw": "HNSW32", "ivf": "IVF{cells},Flat"}  # in the words of faiss.index_factory


def item_vectors(model: torch.nn.Module) -> Float[Tensor, "V W"]:
    """Vectors whose products with ``model.search_query(query)`` rank the items as the scores do.

    Raises:
        ValueError: if the model has none, because a score is more than such a product.
    """
    items = model.search_items() if isinstance(model, SessionModel) else None
    if items is None:
        kind = type(model).__name__
        raise ValueError(
            f"an index of the items and {kind} do not go together: an index finds the best items by the product of one "
            f"query vector, the same for every candidate, with one vector of each item, and the scores of {kind} as it "
            "is set are more than such products (the query may depend on the candidate): rank the catalogue with "
            "`recommend`, or index a model such as sr-gnn or stamp"
        )
    return items


def exact_top(
    query: Float[Tensor, "B W"], items: Float[Tensor, "V W"], k: int, piece: int = PIECE
) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"]]:
    """Scores and numbers of the k best items, best first; of equal scores the earlier item is the better one.

    Memory is B x (`piece` + 2 k) scores, whatever V is.

    Raises:
        ValueError: if k is not in 1..V.
    """
    if not 1 <= k <= len(items):
        raise ValueError(f"k must lie in 1..{len(items)} (the catalogue), got {k}")
    best = query.new_empty(len(query), 0), torch.empty(len(query), 0, dtype=torch.long, device=query.device)
    for begin in range(0, len(items), piece):
        scores = query @ items[begin : begin + piece].T  # (B, piece)
        ids = torch.arange(begin, begin + scores.shape[1], device=query.device).expand_as(scores)
        found = best_of(scores, ids, k)
        best = best_of(torch.cat([best[0], found[0]], 1), torch.cat([best[1], found[1]], 1), k)
    return best


def best_of(
    scores: Float[Tensor, "B N"], ids: Int[Tensor, "B N"], k: int
) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"]]:
    """Scores and ids of the k best columns of each row (of all N where they are fewer), best first; of equal scores the
    earlier column is the better one, the same on every machine."""
    if scores.shape[1] > k:
        columns = _columns(scores, k)
        scores, ids = scores.gather(1, columns), ids.gather(1, columns)
    order = scores.argsort(dim=1, descending=True, stable=True)
    return scores.gather(1, order), ids.gather(1, order)


def _columns(scores: Float[Tensor, "B N"], k: int) -> Int[Tensor, "B K"]:
    """The k best columns of each row, in their order; where the last ones tie, as many of the first as there is room
    for."""
    least, columns = scores.topk(k, 1)
    least = least[:, -1:]
    equal = scores == least
    if int(equal.sum(1).max()) == 1:
        return columns.sort(dim=1).values
    above = scores > least
    room = k - above.sum(1, keepdim=True)
    return (above | equal & (equal.cumsum(1, dtype=torch.int32) <= room)).nonzero()[:, 1].view(-1, k)


def recall(found: Int[Tensor, "B K"], exact: Int[Tensor, "B K"]) -> float:
    """Share of the exactly best items that were found."""
    return (found[:, :, None] == exact[:, None, :]).any(1).float().mean().item()


class Index:
    """A faiss index of item vectors: ``pip install "sbr-core[index]"``.

    Args:
        kind: "flat" (exact), "hnsw" (a graph of neighbours; no training, memory for 64 links an item) or "ivf"
            (cells around centres; fewer bytes, the centres trained on a part of the vectors).
        effort: how much of the index a search looks at: nodes for "hnsw", cells for "ivf".

    Raises:
        ValueError: on an unknown kind, an effort below 1, or a model whose scores are no products.
        ImportError: if faiss is not installed, with the command that installs it.
    """

    def __init__(self, model: SessionModel, kind: str = "hnsw", effort: int = 64):
        if kind not in KINDS or effort < 1:
            raise ValueError(f"kind is one of {', '.join(KINDS)} and effort at least 1, got {kind!r} and {effort}")
        items = item_vectors(model).float().cpu().contiguous().numpy()
        faiss = _faiss()
        self.kind, self.cells = kind, min(len(items), max(1, int(4 * len(items) ** 0.5)))
        self.faiss = faiss.index_factory(
            items.shape[1], KINDS[kind].format(cells=self.cells), faiss.METRIC_INNER_PRODUCT
        )
        self.faiss.train(items[:: max(1, len(items) // (TRAINED * self.cells))])
        self.faiss.add(items)
        self.search_with(effort)

    def search_with(self, effort: int) -> None:
        """Look at so many nodes or cells in the searches to come."""
        if self.kind == "hnsw":
            self.faiss.hnsw.efSearch = effort
        elif self.kind == "ivf":
            self.faiss.nprobe = min(effort, self.cells)

    @property
    def megabytes(self) -> float:
        """Size of the index, in memory as on disk."""
        return _faiss().serialize_index(self.faiss).nbytes / 1e6

    def top(self, query: Float[Tensor, "B W"], k: int) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"]]:
        """Scores and numbers of the k best items that the index finds, best first; -1 where it finds fewer."""
        scores, ids = self.faiss.search(query.detach().float().cpu().contiguous().numpy(), k)
        return torch.from_numpy(scores), torch.from_numpy(ids)

    def save(self, path: Path | str) -> Path:
        """Write the index in faiss's own form, whole or not at all: any program with faiss reads it, the rows are those
        of the catalogue.

        Raises:
            OSError: if it cannot be written, naming the file.
        """
        path = Path(path)
        try:
            with replaced(path) as beside:
                _faiss().write_index(self.faiss, str(beside))
        except (OSError, RuntimeError) as error:
            raise OSError(f"the index could not be written to {path}: is there such a folder, and room?") from error
        return path


def _faiss():
    try:
        import faiss
    except ImportError as error:
        raise ImportError('an index wants faiss: pip install "sbr-core[index]"') from error
    return faiss
