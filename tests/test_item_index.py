"""The k best items: pieces against a sort of everything, and indices against the pieces."""

from pathlib import Path

import pytest
import torch
from toys import random_sessions

from sbr_core import item_index
from sbr_core.batches import Batch
from sbr_core.item_index import KINDS, Index, exact_top, item_vectors, recall
from sbr_core.models import MODELS, build

V = 400


@pytest.mark.parametrize("piece", [1, 7, 100, 5000])
@pytest.mark.parametrize("k", [1, 5, 60])
def test_pieces_equal_a_stable_sort_of_all_scores(piece, k):
    torch.manual_seed(0)
    query, items = torch.randint(-2, 3, (9, 3)).float(), torch.randint(-1, 2, (60, 3)).float()  # many ties
    scores, ids = exact_top(query, items, k, piece)
    everything = query @ items.T
    for row, shelf in enumerate(ids.tolist()):
        assert shelf == sorted(range(60), key=lambda i, row=row: (-everything[row, i].item(), i))[:k]
    assert torch.equal(scores, everything.gather(1, ids))


@pytest.mark.parametrize("name, arguments", [
    ("sr-gnn", {}), ("stamp", {"similarity": "squared-distance"}), ("stamp", {"normalise": True}),
])  # fmt: skip
def test_vectors_rank_as_the_scores_do(name, arguments):
    torch.manual_seed(0)
    model = build(name, V, dim=16, **arguments).eval()
    query = model.encode(Batch.of([[1, 2, 3], [7], [9, 7, 9, 8]], V))
    with torch.no_grad():
        expected = model.score(query).topk(10).indices
        assert torch.equal(exact_top(model.search_query(query), item_vectors(model), 10)[1], expected)


@pytest.mark.parametrize("name", ["tagnn", "tagnn++", "repeatnet", "pop"])
def test_scores_that_are_no_product_are_refused(name):
    kind = MODELS[name].__name__
    message = f"an index of the items and {kind} do not go together: .* {kind} .* rank the catalogue with `recommend`"
    with pytest.raises(ValueError, match=message):
        item_vectors(build(name, V))


@pytest.mark.parametrize("k", [0, 61])
def test_k_is_a_part_of_the_catalogue(k):
    with pytest.raises(ValueError, match="k must lie in 1..60"):
        exact_top(torch.zeros(1, 3), torch.zeros(60, 3), k)


def test_recall_counts_what_was_found():
    exact = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert recall(torch.tensor([[4, 3, 2, 1], [5, 9, -1, 6]]), exact) == 0.75


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_finds_what_is_best(kind, tmp_path):
    faiss = pytest.importorskip("faiss", reason="faiss is an optional extra: pip install 'sbr-core[index]'")
    torch.manual_seed(0)
    model = build("stamp", V, dim=16).eval()
    query = model.encode(Batch.of([clicks for clicks in random_sessions(50, V)], V)).detach()
    index = Index(model, kind, effort=200)
    scores, ids = index.top(query, 10)
    expected, exact = exact_top(query, item_vectors(model), 10)
    assert recall(ids, exact) > (0.999 if kind == "flat" else 0.95)
    torch.testing.assert_close(scores[:, 0], expected[:, 0])
    again = faiss.read_index(str(index.save(tmp_path / "items.faiss")))
    assert again.ntotal == V and torch.equal(torch.from_numpy(again.search(query.numpy(), 1)[1]), ids[:, :1])


@pytest.mark.parametrize("kind, effort", [("tree", 1), ("hnsw", 0)])
def test_an_index_that_does_not_exist_is_refused(kind, effort):
    with pytest.raises(ValueError, match="kind is one of flat, hnsw, ivf"):
        Index(build("stamp", V), kind, effort)


def test_an_index_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    torch.manual_seed(0)
    index = Index(build("stamp", 40, dim=8), "flat")
    path = index.save(tmp_path / "new" / "items.faiss")
    assert [file.name for file in path.parent.iterdir()] == ["items.faiss"]
    before = path.read_bytes()

    class Full:
        """A disk without room."""

        @staticmethod
        def write_index(index, name):
            """Half of it."""
            Path(name).write_bytes(b"half")
            raise RuntimeError("write error: No space left on device")

    monkeypatch.setattr(item_index, "_faiss", lambda: Full)
    with pytest.raises(OSError, match="could not be written to .*items.faiss"):
        index.save(path)
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1
