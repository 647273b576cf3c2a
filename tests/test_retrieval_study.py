"""The study of retrieval: the vectors have the clusters that they are said to have, and every way is measured."""

import pytest
import torch

from sbr_core import retrieval_study as study


def test_vectors_lie_around_common_centres_on_the_unit_sphere():
    query, items = study.clustered(2_000, 50, dim=64)
    assert query.shape == (50, 64) and items.shape == (2_000, 64)
    torch.testing.assert_close(items.norm(dim=1), torch.ones(2_000))
    cosine = query @ items.T
    near = cosine > 0.33
    assert 80 < near.sum(1).float().mean() < 120 and cosine[near].mean() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(study.clustered(2_000, 50)[1], items) and not torch.equal(
        study.clustered(2_000, 50, seed=1)[1], items
    )


def test_every_way_is_measured_at_every_size_and_indices_up_to_theirs(monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(study, "EFFORTS", (1, 400))
    found = study.retrieval_study((500, 900), indexed=500, queries=20, dim=8)
    rows = found["retrieval"]
    small = [("exact", None), ("hnsw", 1), ("hnsw", 400), ("ivf", 1), ("ivf", 400)]
    assert [(row["items"], row["kind"], row["effort"]) for row in rows] == [
        *((500, *way) for way in small), (900, "exact", None)
    ]  # fmt: skip
    assert all(row["ms_together"] > 0 and row["ms_alone"] > 0 for row in rows)
    by_way = {(row["kind"], row["effort"]): row for row in rows if row["items"] == 500}
    assert by_way["exact", None]["megabytes"] == 500 * 8 * 4 / 1e6 < by_way["ivf", 1]["megabytes"]
    for kind in ("hnsw", "ivf"):
        assert by_way[kind, 1]["recall"] < by_way[kind, 400]["recall"] and by_way[kind, 400]["recall"] > 0.99
        assert by_way[kind, 1]["build_seconds"] > 0


def test_without_an_index_nothing_but_the_exact_way_is_measured():
    (row,) = study.measured(*study.clustered(300, 10, dim=8), indexed=False)
    assert (row["kind"], row["recall"]) == ("exact", 1.0)
