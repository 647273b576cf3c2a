"""Products, distances and the unit sphere: loops, zero vectors, what the models refuse, what is saved."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from toys import random_sessions

from sbr_core.batches import Batch
from sbr_core.evaluate import evaluate
from sbr_core.losses import FullSoftmax, Scores
from sbr_core.models import build
from sbr_core.recommend import Recommender
from sbr_core.similarity import SIMILARITIES, compare, search_items, search_query, unit

V, D = 30, 8
PREFIXES = [[3], [5, 5, 5], [1, 2, 1, 3], [29], [7, 4, 9, 11, 2]]
EVERY = [(kind, normalise) for kind in SIMILARITIES for normalise in (False, True)]


def similarity_loop(q, v, kind, normalise):
    """One query and one item, differentiable."""
    if normalise:
        q, v = q / q.square().sum().sqrt(), v / v.square().sum().sqrt()
    if kind == "dot":
        return sum(a * b for a, b in zip(q, v, strict=True))
    squared = sum((a - b) ** 2 for a, b in zip(q, v, strict=True))
    return -squared if kind == "squared-distance" else -squared.sqrt()


def model_of(name="stamp", **arguments):
    torch.manual_seed(0)
    model = build(name, V, dim=D, **arguments).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


@pytest.mark.parametrize("kind, normalise", EVERY)
@pytest.mark.parametrize("own", [False, True])
def test_value_and_gradients_equal_a_loop(kind, normalise, own):
    q = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    v = torch.randn(*((3, 2) if own else (5,)), 4, dtype=torch.float64, requires_grad=True)
    side = unit if normalise else (lambda x: x)
    found = compare(side(q), side(v), kind)
    rows = [[similarity_loop(a, b, kind, normalise) for b in (v[i] if own else v)] for i, a in enumerate(q)]
    expected = torch.stack([torch.stack(row) for row in rows])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(found)
    for left, right in zip(*(torch.autograd.grad((x * weight).sum(), (q, v)) for x in (found, expected)), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-11)


def test_unit_vectors_have_length_one_and_keep_their_direction():
    x = torch.tensor([[3.0, 4.0], [-5.0, 12.0], [1e-3, 0.0]])
    torch.testing.assert_close(unit(x), torch.tensor([[0.6, 0.8], [-5 / 13, 12 / 13], [1.0, 0.0]]))


def test_a_zero_vector_has_no_direction_and_learns_by_the_plain_gradient():
    x = torch.zeros(2, 3, requires_grad=True)
    weight = torch.randn(2, 3)
    (unit(x) * weight).sum().backward()
    assert unit(x).eq(0).all() and torch.equal(x.grad, weight)


def test_equal_vectors_have_no_gradient_of_their_distance():
    q = torch.ones(1, 3, dtype=torch.float64, requires_grad=True)
    distance = compare(q, q.detach().clone(), "distance")
    distance.sum().backward()
    assert distance.item() == pytest.approx(-1e-6) and q.grad.eq(0).all()


@pytest.mark.parametrize("kind, normalise", EVERY)
def test_search_vectors_rank_as_the_similarity_does(kind, normalise):
    q, table = torch.randn(6, 4, dtype=torch.float64), torch.randn(40, 4, dtype=torch.float64)
    side = unit if normalise else (lambda x: x)
    scores = compare(side(q), side(table), kind)
    found = search_query(q, kind, normalise) @ search_items(table, kind, normalise).T
    assert torch.equal(found.argsort(1), scores.argsort(1))
    if kind == "dot" and not normalise:
        assert search_items(table, kind, normalise) is table  # no copy


@pytest.mark.parametrize("kind, normalise", EVERY)
def test_scores_of_some_items_are_columns_of_all_and_the_scale_is_a_factor(kind, normalise):
    model = model_of(similarity=kind, normalise=normalise, scale=1.0)
    with torch.no_grad():
        query = model.encode(Batch.of(PREFIXES, V))
        every = model.score(query)
        expected = torch.stack(
            [torch.stack([similarity_loop(q, v, kind, normalise) for v in model.table[:-1]]) for q in query]
        )
        torch.testing.assert_close(every, expected, rtol=0, atol=1e-12)
        ids, own = torch.tensor([7, 0, 29, 7]), torch.randint(V, (len(PREFIXES), 5))
        torch.testing.assert_close(model.score(query, ids), every[:, ids], rtol=0, atol=1e-12)
        torch.testing.assert_close(model.score(query, own), every.gather(1, own), rtol=0, atol=1e-12)
        model.scale = 3.5
        torch.testing.assert_close(model.score(query), 3.5 * every, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind, normalise", EVERY)
def test_evaluation_ranks_as_the_scores_do_at_any_scale(kind, normalise):
    windows = random_sessions(15, V, seed=5).prefixes()
    ranks = []
    for scale in (1.0, 7.0):
        model = model_of(similarity=kind, normalise=normalise, scale=scale)
        ranks.append(evaluate(model, windows, chunk=8).ranks)
        with torch.no_grad():
            for number in range(0, len(windows), 5):
                row = windows[torch.tensor([number])]
                items = row.items[row.start[0] : row.target[0]].tolist()
                scores = model.score(model.encode(Batch.of([items], V)))[0]
                assert ranks[-1][number] == (scores >= scores[row.labels[0].long()]).sum()
    assert torch.equal(*ranks)


@pytest.mark.parametrize("name", ["stamp", "sr-gnn", "gru4rec", "narm", "transformer"])
def test_items_are_scaled_only_where_they_are_compared(name):
    """A longer query or a longer item changes no score; the encoder reads the table as it is."""
    model, batch = model_of(name, normalise=True), Batch.of(PREFIXES, V)
    with torch.no_grad():
        query = model.encode(batch)
        scores = model.score(query)
        torch.testing.assert_close(model.score(query * 7), scores, rtol=0, atol=1e-12)
        model.table[17] *= 9  # in no prefix
        torch.testing.assert_close(model.score(model.encode(batch)), scores, rtol=0, atol=1e-12)
        model.table[11] *= 9  # in one
        assert (model.encode(batch)[4] - query[4]).abs().max() > 1e-3


@pytest.mark.parametrize("form", ["auto", "plain"])
@pytest.mark.parametrize("kind, normalise", EVERY)
def test_the_full_softmax_of_every_similarity_has_the_textbooks_value_and_gradients(form, kind, normalise):
    model, batch = (
        model_of(similarity=kind, normalise=normalise, scale=2.5),
        Batch.of(PREFIXES, V, target=[1, 2, 3, 4, 1]),
    )
    with torch.no_grad():
        model.table[6] = 0  # an item without direction
    query = model.encode(batch).detach().requires_grad_()
    loss = FullSoftmax(form=form)(Scores(model, query), batch.target)
    loss.backward()
    q, table = query.detach().clone().requires_grad_(), model.table.detach().clone().requires_grad_()
    side = unit if normalise else (lambda x: x)
    expected = F.cross_entropy(2.5 * compare(side(q), side(table[:-1]), kind), batch.target)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(query.grad, q.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.table.grad, table.grad, rtol=0, atol=1e-12)


def test_products_on_the_sphere_are_scaled_by_default_and_nothing_else_is():
    assert build("stamp", V, dim=D, normalise=True).scale == 16
    assert build("stamp", V, dim=D, normalise=True, scale=1).scale == 1
    for arguments in ({}, {"similarity": "distance", "normalise": True}, {"similarity": "squared-distance"}):
        assert build("stamp", V, dim=D, **arguments).scale == 1


def test_a_saved_model_keeps_its_similarity(tmp_path):
    arguments = {"dim": D, "similarity": "distance", "normalise": True, "scale": 4.0}
    model = build("stamp", V, **arguments)
    before = Recommender(model, np.arange(V), torch.ones(V))
    before.save(tmp_path, "stamp", arguments)
    after = Recommender.load(tmp_path)
    assert (after.model.similarity, after.model.normalise, after.model.scale) == ("distance", True, 4.0)
    assert after.recommend_batch(PREFIXES, 5) == before.recommend_batch(PREFIXES, 5)


@pytest.mark.parametrize(
    "name, more",
    [("tagnn", {}), ("tagnn++", {}), ("repeatnet", {}), ("gru4rec-2018", {}), ("lessr", {"clip": "forward"})],
)
@pytest.mark.parametrize("setting", [{"similarity": "distance"}, {"normalise": True}, {"scale": 2.0}])
def test_models_without_a_plain_product_refuse_another_similarity(name, more, setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}.* wants scores that are one query vector .*leave"):
        build(name, V, dim=D, **setting, **more)
    assert build(name, V, dim=D, similarity="dot", normalise=False, scale=1.0, **more).scale == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"similarity": "cosine"}, "similarity is one of dot, distance, squared-distance, got 'cosine'"),
        ({"scale": 0.0}, "scale must be positive and finite, got 0.0"),
        ({"scale": float("inf")}, "scale must be positive and finite, got inf"),
        ({"normalise": 1}, "normalise is bool, got 1"),
    ],
)
def test_settings_without_a_meaning_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build("stamp", V, **arguments)


def test_counting_systems_have_no_similarity():
    with pytest.raises(ValueError, match="pop has no argument 'normalise'; it has none"):
        build("pop", V, normalise=True)
