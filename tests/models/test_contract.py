"""What every model of `MODELS` promises, and what every neural one promises beyond."""

import math

import numpy as np
import pytest
import torch
from toys import random_clicks, random_sessions, same

from sbr_core.batches import Batch, gather
from sbr_core.evaluate import evaluate
from sbr_core.losses import FullSoftmax, Scores
from sbr_core.models import MODELS, build
from sbr_core.models.base import CountingModel, SessionModel
from sbr_core.optim import make_optimizers, set_learning_rate
from sbr_core.recommend import Recommender
from sbr_core.sessions import Sessions
from sbr_core.train import train_step

V, D = 30, 8
TRAIN = random_sessions(80, V, seed=1, shortest=2)
PREFIXES = [[3], [5, 5, 5], [1, 2, 1, 3], [0, 1, 2, 0, 1, 2, 0, 8], [29], [7, 4, 9, 11, 2]]
PADDED = {"null_slots": "official", "pad_to_train": 9, "pad_to_test": 5}
NEURAL = [name for name, cls in MODELS.items() if issubclass(cls, SessionModel)]
ALL = pytest.mark.parametrize("name", MODELS)
VARIANTS = [
    *((name, {}) for name in NEURAL),
    ("sr-gnn", {"hybrid": False}), ("sr-gnn", {"readout": "last"}), ("sr-gnn", {"readout": "mean"}),
    ("sr-gnn", {"steps": 3}),
    ("sr-gnn", {"edge_weight": "count"}), ("gru4rec", {"hidden": 5}),
    ("gru4rec-2018", {"embedding": "separate", "cell": "reset-before"}), ("gru4rec-2018", {"embedding": "separate"}),
    ("stamp", {"add_mean": True, "biases": False}), ("stamp", {"clip_norm": 1.0}),
    ("gc-san", {"blocks": 2, "share_blocks": True, "causal": True, "dropout": 0.0}), ("gc-san", {"layer_norm": True}),
    ("transformer", {"positions": "start", "blocks": 2, "causal": False}), ("transformer", {"positions": "none"}),
    ("transformer", {"max_positions": 6, "heads": 4}),
    ("lessr", {"layers": 1}), ("lessr", {"aggregator": "mean"}), ("lessr", {"sgat": "ordinary", "dense": False}),
    ("lessr", {"aggregator": "sum", "sgat": "off"}), ("lessr", {"clip": "forward"}),
    ("dgtn", {"inter": "none", "fusion": "max"}), ("dgtn", {"fusion": "gate", "norm": "in"}),
    ("dgtn", {"fusion": "gru"}), ("dgtn", {"fusion": "concat"}), ("dgtn", {"fusion": "intra"}),
    ("repeatnet", {"dropout": 0.0, "mode_loss": 1.0}), ("csrm", {"layer_norm": True, "hidden": 5}),
    ("csrm", {"neighbours": 4, "capacity": 9, "strength": 3.0}),
    ("lgsr", {"residual": True, "hard_sigmoid": True, "nce": True}), ("lgsr", {"pooling": False, "g": 0}),
    ("lgsr", {"recommender": "sr-gnn"}), ("lgsr", {"max_positions": 4}),
    ("narm", {"attention": "softmax"}), ("narm", {"cell": "code"}), ("narm", {"hidden": 5}),
    ("narm", {"attention": "softmax", "cell": "code", "hard": True}),
    ("tagnn", {"combine": "add"}), ("tagnn", {"attention_softmax": True, "hybrid": False}),
    ("tagnn", {"null_slots": 5}),
    ("tagnn", {"readout": "L+Att"}), ("tagnn", {"readout": "Att"}), ("tagnn", {"readout": "L"}),
    ("tagnn", {"readout": "Avg"}), ("tagnn", {"edge_weight": "count"}),
    ("tagnn++", {"positions": "none", "causal": True}), ("tagnn++", {"positions": "end", "heads": 4}),
    ("tagnn", {"combine": "add", "attention_softmax": True} | PADDED), ("tagnn++", {"form": "code"}),
    ("tagnn++", {"form": "code", "null_slots": 3}), ("tagnn++", {"form": "code"} | PADDED),
    ("tagnn++", {"steps": 0}), ("tagnn++", {"blocks": 0}), ("tagnn++", {"max_positions": 6, "blocks": 2}),
]  # fmt: skip
NEURAL_VARIANTS = pytest.mark.parametrize("name, arguments", VARIANTS, ids=str)


def model_of(name, arguments=None, seed=0):
    """A model that can be asked: initialised or counted, in evaluation mode."""
    torch.manual_seed(seed)
    if issubclass(MODELS[name], CountingModel):
        model = build(name, V, **(arguments or {})).fit(TRAIN)
        return model.double() if name in ("bpr-mf", "fpmc") else model  # their products round, counts do not
    model = build(name, V, dim=D, **(arguments or {})).double().eval()
    for parameter in model.parameters() if name == "stamp" else ():
        torch.nn.init.normal_(parameter, std=0.4)  # its own initialisation is too small to tell sessions apart
    return model


def scores_of(model, prefixes, ids=None):
    with torch.no_grad():
        return model.score(model.encode(Batch.of(prefixes, V)), ids)


def assert_close(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-6 if left.dtype == torch.float32 else 1e-12)


@ALL
def test_scores_are_one_finite_number_per_session_and_item(name):
    scores = scores_of(model_of(name), PREFIXES)
    assert scores.shape == (len(PREFIXES), V) and scores.is_floating_point() and scores.isfinite().all()
    if name != "pop":
        assert not torch.equal(scores[0], scores[3])


@pytest.mark.parametrize("name", NEURAL)
@pytest.mark.parametrize("dim", [0, -1])
def test_vectors_without_width_are_refused(name, dim):
    with pytest.raises(ValueError, match=f"num_items and dim must be at least 1, got {V} and {dim}"):
        build(name, V, dim=dim)


@ALL
def test_more_padding_changes_nothing(name):
    model, batch = model_of(name), Batch.of(PREFIXES, V)
    wider = Batch(torch.nn.functional.pad(batch.items, (0, 7), value=V), batch.lengths, batch.target)
    with torch.no_grad():
        assert_close(model.score(model.encode(wider)), model.score(model.encode(batch)))


@ALL
def test_scores_of_a_session_do_not_depend_on_its_neighbours_in_the_batch(name):
    model = model_of(name)
    alone = torch.cat([scores_of(model, [prefix]) for prefix in PREFIXES])
    assert_close(scores_of(model, PREFIXES), alone)


@ALL
def test_the_order_of_the_rows_does_not_matter(name):
    model, order = model_of(name), [3, 0, 5, 1, 4, 2]
    assert_close(scores_of(model, [PREFIXES[i] for i in order]), scores_of(model, PREFIXES)[order])


@ALL
def test_scores_of_some_items_are_columns_of_all_scores(name):
    model = model_of(name)
    every = scores_of(model, PREFIXES)
    shared = torch.tensor([7, 0, 29, 7])
    assert_close(scores_of(model, PREFIXES, shared), every[:, shared])
    own = torch.randint(V, (len(PREFIXES), 5))
    assert_close(scores_of(model, PREFIXES, own), every.gather(1, own))


@ALL
def test_odd_sessions_are_answered(name):
    odd = [[4], [4, 4], [4] * 60, list(range(V)), [0] * 3 + [29] * 3]
    scores = scores_of(model_of(name), odd)
    assert scores.shape == (5, V) and scores.isfinite().all()


@ALL
def test_the_target_is_not_looked_at(name):
    model, batch = model_of(name), Batch.of(PREFIXES, V)
    other = Batch(batch.items, batch.lengths, torch.full_like(batch.target, 17))
    with torch.no_grad():
        assert torch.equal(model.score(model.encode(batch)), model.score(model.encode(other)))


@ALL
def test_evaluation_ranks_as_the_scores_do(name):
    model, windows = model_of(name), random_sessions(15, V, seed=5).prefixes()
    batch = gather(windows, torch.arange(len(windows)))
    with torch.no_grad():
        scores = model.score(model.encode(batch))
    expected = (scores >= scores.gather(1, batch.target[:, None])).sum(1).float()
    result = evaluate(model, windows, chunk=8)
    agree = (result.ranks == expected).float().mean()
    assert agree == 1 or (name in NEURAL and agree > 0.98)  # a product of another shape may round otherwise


@ALL
def test_one_seed_gives_one_model_and_another_seed_another(name):
    one, two, other = model_of(name), model_of(name), model_of(name, seed=1)
    assert same(one.state_dict(), two.state_dict())
    assert same(one.state_dict(), other.state_dict()) == (name not in NEURAL)


@ALL
def test_a_saved_model_recommends_the_same(name, tmp_path):
    arguments = {"dim": D} if name in NEURAL else {}
    model = model_of(name).float()
    counts = torch.bincount(TRAIN.clicks.long(), minlength=V)
    before = Recommender(model, np.arange(100, 100 + V), counts)
    before.save(tmp_path, name, arguments)
    after = Recommender.load(tmp_path)
    clicks = [[100 + item for item in prefix] for prefix in [*PREFIXES, []]]
    assert after.recommend_batch(clicks, k=7) == before.recommend_batch(clicks, k=7)
    assert same(after.model.state_dict(), model.state_dict()) and not after.model.training


@ALL
def test_a_model_has_a_name_in_one_place_and_its_class_says_what_it_is(name):
    assert isinstance(model_of(name), MODELS[name]) and MODELS[name].__doc__
    assert model_of(name).num_items == V and model_of(name).needs_all_items is (name == "repeatnet")


@NEURAL_VARIANTS
def test_every_parameter_gets_a_gradient(name, arguments):
    model, batch = model_of(name, arguments), Batch.of(PREFIXES, V, target=[1, 2, 3, 4, 5, 6])
    model.prepare(TRAIN)
    FullSoftmax()(Scores(model, model.encode(batch)), batch.target).backward()
    for task in model.auxiliary_tasks():
        task.loss(0, 0).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        grad = parameter.grad.to_dense()
        assert grad.isfinite().all() and grad.abs().max() > 0, key


@pytest.mark.parametrize("name", [name for name in NEURAL if name != "repeatnet"])  # whose guess is half the session
def test_an_untrained_model_is_as_good_as_a_guess(name):
    sessions = random_sessions(60, 3000, seed=4, shortest=2)
    torch.manual_seed(0)
    model = build(name, 3000)
    model.prepare(sessions)
    batch = gather(sessions.prefixes(), torch.arange(60))
    with torch.no_grad():
        loss = FullSoftmax()(Scores(model.eval(), model.encode(batch)), batch.target).item()
    assert loss == pytest.approx(math.log(3000), abs=0.2)


@NEURAL_VARIANTS
def test_padding_learns_nothing(name, arguments):
    model, batch = model_of(name, arguments), Batch.of(PREFIXES, V, target=[1, 2, 3, 4, 5, 6])
    FullSoftmax()(Scores(model, model.encode(batch)), batch.target).backward()
    reached = sorted({item for prefix in PREFIXES for item in prefix}) if name == "repeatnet" else slice(V)
    public = "null_slots" in arguments and ("form" in arguments or "attention_softmax" in arguments)
    assert model.table.grad[reached].ne(0).all()
    assert model.table.grad[V].ne(0).all() if public else model.table.grad[V].eq(0).all()  # there padding is a node


@NEURAL_VARIANTS
def test_new_numbers_for_the_items_give_the_same_scores_under_the_new_numbers(name, arguments):
    model, order = model_of(name, arguments), torch.randperm(V)  # item i is called order[i] now
    before = scores_of(model, PREFIXES)
    with torch.no_grad():
        further = [model.W_o.weight] if name == "repeatnet" else [getattr(model, key) for key in model.looked_up]
        for table in (model.table, *further):
            table[order] = table[:V].clone()
    after = scores_of(model, [order[prefix].tolist() for prefix in PREFIXES])
    by_number = "form" in arguments  # the public code of TAGNN++ reads the nodes in the order of their numbers
    same_rows = 2 if by_number else len(PREFIXES)  # the first two sessions have one node
    assert_close(after[:same_rows, order], before[:same_rows])
    assert torch.allclose(after[:, order], before) != by_number


@NEURAL_VARIANTS
def test_twenty_examples_can_be_learned_by_heart(name, arguments):
    clicks = [[*prefix, number, (7 * number) % V] for number, prefix in enumerate(random_clicks(20, V, 3, seed=2))]
    sessions = Sessions.from_lists(clicks, V)  # every last click is another: even a model that sees no more can do it
    windows = sessions.prefixes()
    windows = windows[torch.isin(windows.target, sessions.offsets[1:] - 1)]
    batch = gather(windows, torch.arange(20))
    torch.manual_seed(0)
    plain = {"dropout": 0.0} if name == "lgsr" else {}  # a third of its five layers' entries would be missing
    model, loss = build(name, V, dim=24, **plain | arguments), FullSoftmax()
    optimizers = make_optimizers(model, lr=0.02)
    for lr, steps in ((0.02, 80), (0.002, 20)):  # so high a rate to the end would lose an example again for some steps
        set_learning_rate(optimizers, lr)
        for _ in range(steps):
            train_step(model, loss, optimizers, batch)
    assert evaluate(model, windows).metric("HR@1") == 100


@pytest.mark.parametrize("name", NEURAL)
def test_a_model_scores_alike_on_every_device(name, device):
    model = model_of(name)
    expected = scores_of(model, PREFIXES)
    model, batch = model.to(device), Batch.of(PREFIXES, V).to(device)
    with torch.no_grad():
        torch.testing.assert_close(model.score(model.encode(batch)).cpu(), expected, rtol=0, atol=1e-9)


def test_a_model_that_does_not_exist_is_refused_by_name():
    with pytest.raises(ValueError, match=r"no model 'srgnn'; the models are pop, s-pop, .*sr-gnn"):
        build("srgnn", V)


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("stamp", {"steps": 2}, "stamp has no argument 'steps'; it has dim, add_mean, biases, clip_norm"),
        ("pop", {"dim": 2}, "pop has no argument 'dim'; it has none"),
        ("sr-gnn", {"num_items": 3}, "sr-gnn has no argument 'num_items'"),
        ("sr-gnn", {"name": "x"}, "sr-gnn has no argument 'name'"),
        ("sr-gnn", {"steps": 1.5}, "sr-gnn: steps is int, got 1.5"),
        ("sr-gnn", {"hybrid": "False"}, "sr-gnn: hybrid is bool, got 'False'"),
        ("sr-gnn", {"readout": 3}, "sr-gnn: readout is str, got 3"),
        ("stamp", {"clip_norm": "x"}, r"stamp: clip_norm is float \| None, got 'x'"),
        ("gru4rec", {"hidden": 2.5}, r"gru4rec: hidden is int \| None, got 2.5"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused_by_name(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(name, V, **arguments)


def test_whole_numbers_are_numbers():
    assert build("stamp", V, dim=4, clip_norm=1).clip_norm == 1 and build("gru4rec", V, dim=4, dropout=0).dropout.p == 0
    assert build("stamp", V, dim=4, clip_norm=None).clip_norm is None


def test_a_neural_model_without_an_encoder_says_so():
    with pytest.raises(TypeError, match="SessionModel does not say how it encodes"):
        SessionModel(3, 2).encode(Batch.of([[1]], 3))
