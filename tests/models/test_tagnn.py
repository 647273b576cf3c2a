"""TAGNN against its equations with a vector for every candidate; its invariants, its size, what remains of it."""

import math

import pytest
import torch
from target_loops import assert_close_to_textbook, graph_states, head_scores, padding_state
from torch.nn import functional as F
from toys import random_sessions

from sbr_core.batches import Batch, gather
from sbr_core.losses import FullSoftmax, Scores
from sbr_core.models import build
from sbr_core.models.srgnn import SRGNN
from sbr_core.models.tagnn import TAGNN
from sbr_core.target_attention import weights

V, D = 9, 4
SESSIONS = [[3], [5, 5], [1, 2, 1, 3], [1, 2, 3, 2, 4], [7, 7, 7, 0, 7], [0, 1, 2, 0, 1, 2, 0, 8]]
CODE = {"combine": "add", "attention_softmax": True, "null_slots": "official", "pad_to_train": 12, "pad_to_test": 5}


def model_of(**arguments) -> TAGNN:
    torch.manual_seed(3)
    return TAGNN(V, D, **arguments).double()


def scores(model, *sessions, ids=None):
    return model.score(model.encode(Batch.of([list(session) for session in sessions], V)), ids)


def shared(model, other):
    """Another model with the parameters of `model`."""
    renamed = {name.removeprefix("head."): value for name, value in model.state_dict().items()}
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(renamed[name.removeprefix("head.")])
    return other


def null_slots(model, session):
    if model.null_slots == "none":
        return 0
    pad_to = model.pad_to_train if model.training else model.pad_to_test
    return max(pad_to - len(session), 0) if model.null_slots == "official" else model.null_slots


def scores_loop(model, session):
    states = graph_states(model, session, model.edge_weight)
    clicks = [states[item] for item in session]
    return head_scores(model.head, model.table, clicks, null_slots(model, session), padding_state(model))


VARIANTS = [
    {}, {"steps": 0}, {"steps": 2}, {"combine": "add"}, {"attention_softmax": True}, {"hybrid": False},
    {"combine": "add", "hybrid": False}, {"null_slots": 0}, {"null_slots": 7}, CODE, {**CODE, "steps": 2},
    {**CODE, "hybrid": False}, {**CODE, "combine": "project"}, {**CODE, "attention_softmax": False},
    {"readout": "L"}, {"readout": "Avg"}, {"readout": "Att"}, {"readout": "L+Att"},
    {"readout": "Att", "attention_softmax": True}, {"readout": "L+Att", "attention_softmax": True, "null_slots": 3},
]  # fmt: skip


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_value_and_gradients_equal_the_equations_in_a_loop(arguments):
    model, batch = model_of(**arguments), Batch.of(SESSIONS, V, target=[*range(len(SESSIONS))])
    expected = torch.stack([scores_loop(model, session) for session in SESSIONS])
    torch.testing.assert_close(scores(model, *SESSIONS), expected, rtol=0, atol=1e-12)
    loss = FullSoftmax()(Scores(model, model.encode(batch)), batch.target)
    assert_close_to_textbook(model, loss, F.cross_entropy(expected, batch.target))


@pytest.mark.parametrize("arguments", [{}, CODE, {"readout": "Att"}], ids=str)
def test_the_plain_form_of_the_softmax_gives_the_same_gradients(arguments):
    model, batch = model_of(**arguments), Batch.of(SESSIONS, V, target=[*range(len(SESSIONS))])
    expected = torch.stack([scores_loop(model, session) for session in SESSIONS])
    loss = FullSoftmax(form="plain")(Scores(model, model.encode(batch)), batch.target)
    assert_close_to_textbook(model, loss, F.cross_entropy(expected, batch.target))


@pytest.mark.parametrize("arguments", [{}, CODE], ids=str)
@pytest.mark.parametrize("shape", [(3,), (6, 4)])
def test_a_sampled_loss_sees_columns_of_the_scores_and_their_gradients(arguments, shape):
    model, ids = model_of(**arguments), torch.randint(V, shape)
    factor = torch.randn(6, shape[-1], dtype=torch.float64)
    expected = torch.stack([scores_loop(model, session) for session in SESSIONS]).gather(1, ids.expand(6, -1))
    some = scores(model, *SESSIONS, ids=ids)
    torch.testing.assert_close(some, expected, rtol=0, atol=1e-12)
    assert_close_to_textbook(model, (some * factor).sum(), (expected * factor).sum())


def test_weights_count_edges_where_asked():
    """One third is exact in float32 up to 1e-7 only."""
    model = model_of(edge_weight="count")
    expected = torch.stack([scores_loop(model, session) for session in SESSIONS])
    torch.testing.assert_close(scores(model, *SESSIONS), expected, rtol=0, atol=1e-7)
    assert not torch.allclose(scores(shared(model, model_of()), [1, 0, 1, 0, 1, 2]), scores(model, [1, 0, 1, 0, 1, 2]))


# Reductions


def test_the_ablation_with_last_state_and_attention_is_sr_gnn():
    for mine, theirs in ({"readout": "L+Att"}, {}), ({"readout": "L"}, {"readout": "last"}), (
        {"readout": "Avg"}, {"readout": "mean"}), ({"readout": "Att"}, {"hybrid": False}):  # fmt: skip
        model = model_of(**mine, steps=2)
        other = shared(model, SRGNN(V, D, steps=2, **theirs).double())
        torch.testing.assert_close(scores(model, *SESSIONS), scores(other, *SESSIONS), rtol=0, atol=1e-12)


@pytest.mark.parametrize("softmax", [False, True])
def test_without_its_target_branch_it_is_sr_gnn(softmax):
    model = model_of(attention_softmax=softmax)
    with torch.no_grad():
        model.head.W_T.weight.zero_()
    other = shared(model, model_of(readout="L+Att", attention_softmax=softmax))
    torch.testing.assert_close(scores(model, *SESSIONS), scores(other, *SESSIONS), rtol=0, atol=1e-12)


def test_project_with_the_identity_is_add():
    model = model_of(combine="project")
    with torch.no_grad():
        model.head.W_T.weight.copy_(torch.eye(D))
    other = shared(model, model_of(combine="add"))
    torch.testing.assert_close(scores(model, *SESSIONS), scores(other, *SESSIONS), rtol=0, atol=1e-12)


# Invariants


def test_with_W_zero_the_target_vector_is_the_mean_of_the_clicks():
    model = model_of(combine="add", hybrid=False)
    with torch.no_grad():
        model.head.W.weight.zero_()
        model.head.attention.q.weight.zero_()
    mean = shared(model, model_of(readout="Avg"))
    torch.testing.assert_close(scores(model, *SESSIONS), scores(mean, *SESSIONS), rtol=0, atol=1e-12)


def test_a_single_click_is_the_target_vector_of_every_candidate():
    model = model_of(combine="add", hybrid=False)
    with torch.no_grad():
        model.head.attention.q.weight.zero_()
    last = shared(model, model_of(readout="L"))
    torch.testing.assert_close(scores(model, [6], [2]), scores(last, [6], [2]), rtol=0, atol=1e-12)
    slots = model.encode(Batch.of([[6]], V))
    assert weights(slots, model.table[:-1]).eq(1).all()


def test_attention_differs_between_candidates_and_sums_to_one():
    model = model_of()
    beta = weights(model.encode(Batch.of([[1, 2, 1, 3]], V)), model.table[:-1])[0]  # (L, V)
    torch.testing.assert_close(beta.sum(0), torch.ones(V, dtype=torch.float64))
    assert beta[2].eq(0).all() and beta[[0, 1, 3]].gt(0).all() and beta[0].std() > 1e-3  # slot 2 repeats item 1


def test_a_repeated_item_counts_as_often_as_it_is_clicked():
    model = model_of()
    with torch.no_grad():
        model.head.W.weight.zero_()
    beta = weights(model.encode(Batch.of([[1, 2, 1, 3], [7, 7, 7, 0]], V)), model.table[:1])[..., 0]
    torch.testing.assert_close(beta, torch.tensor([[0.5, 0.25, 0, 0.25], [0.75, 0, 0, 0.25]]).double())


def test_official_scores_depend_on_the_padding_only_through_the_number_of_null_slots():
    session = [1, 2, 1, 3]
    official = model_of(**CODE)  # 12 - 4 in training, 5 - 4 in evaluation
    for mode, count in (True, 8), (False, 1):
        fixed = shared(official, model_of(combine="add", attention_softmax=True, null_slots=count))
        torch.testing.assert_close(scores(official.train(mode), session), scores(fixed, session), rtol=0, atol=1e-12)
    assert not torch.allclose(scores(official.train(), session), scores(official.eval(), session))
    longer = [*session, 1, 2, 1, 3, 4]  # longer than the test's padding: no null slots
    none = shared(official, model_of(combine="add", attention_softmax=True))
    torch.testing.assert_close(scores(official, longer), scores(none, longer), rtol=0, atol=1e-12)


def test_with_ever_more_null_slots_only_the_common_part_is_left():
    model = shared(model_of(**CODE), model_of(combine="add", attention_softmax=True, null_slots=10**12))
    with torch.no_grad():
        h_last = shared(model, model_of(readout="L")).encode(Batch.of(SESSIONS, V))
        common = model.head.W3(torch.cat([torch.zeros_like(h_last), h_last], dim=1)) @ model.table[:-1].T
    torch.testing.assert_close(scores(model, *SESSIONS), common, rtol=0, atol=1e-9)


def test_more_padding_of_the_batch_changes_nothing_with_null_slots_either():
    model, batch = model_of(**CODE), Batch.of(SESSIONS, V)
    wider = Batch(F.pad(batch.items, (0, 7), value=V), batch.lengths, batch.target)
    torch.testing.assert_close(model.score(model.encode(wider)), model.score(model.encode(batch)), rtol=0, atol=1e-12)
    alone = torch.cat([scores(model, session) for session in SESSIONS])
    torch.testing.assert_close(model.score(model.encode(batch)), alone, rtol=0, atol=1e-12)


# Size and initialisation


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_number_of_parameters_is_the_published_one():
    """17 d^2 + 15 d in the public code, less the edge map of d^2 + d that it never uses; the paper's W3 adds d^2."""
    for d in (6, 100):
        assert size(TAGNN(50, d, combine="add")) - 51 * d == 16 * d * d + 14 * d
        assert size(TAGNN(50, d)) - 51 * d == 17 * d * d + 14 * d
    assert size(TAGNN(50, 100, combine="add")) - 5100 == 171_500 - 10_100


def test_the_initialisation_fills_its_range():
    for name, parameter in TAGNN(500, 100).named_parameters():
        assert parameter.abs().max() <= 0.1 and parameter.abs().max() > 0.095 and abs(parameter.mean()) < 0.03, name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_loss_is_about_ln_v(precision):
    windows, model = random_sessions(200, num_items=3000).prefixes(), TAGNN(3000)
    batch = gather(windows, torch.arange(100))
    loss = FullSoftmax(precision)(Scores(model, model.encode(batch)), batch.target)
    assert loss.item() == pytest.approx(math.log(3000), abs=0.1)


# Refusals


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"readout": "attention"}, "readout is one of full, L\\+Att, Att, L, Avg, got 'attention'"),
        ({"combine": "sum"}, "combine is 'project' or 'add', got 'sum'"),
        ({"null_slots": "some"}, "null_slots is 'none', 'official' or a number of 0 or more, got 'some'"),
        ({"null_slots": -1}, "got -1"),
        ({"null_slots": True}, "got True"),
        ({"null_slots": "official"}, "wants the lengths .*, pad_to_train and pad_to_test, got None and None"),
        ({"null_slots": "official", "pad_to_train": 9}, "got 9 and None"),
        ({"null_slots": "official", "pad_to_train": 9, "pad_to_test": 0}, "got 9 and 0"),
        ({"null_slots": 3, "pad_to_test": 4}, "belong to null_slots='official', not to 3"),
        ({"readout": "L+Att", "combine": "add"}, "combine='add' .*; readout='L\\+Att' has none"),
        ({"readout": "Att", "hybrid": False}, "hybrid=False belongs to readout='full', not to 'Att'"),
        ({"readout": "Avg", "attention_softmax": True}, "attention_softmax=True .*readout='Avg' has none"),
        ({"readout": "Att", "null_slots": 4}, "null_slots=4 are counted by a softmax; readout='Att' without it"),
        ({"steps": -1}, "steps must be 0 or more"),
        ({"edge_weight": "sum"}, "edge_weight is 'binary' or 'count', got 'sum'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        scores(TAGNN(V, D, **arguments), [1, 2])


def test_null_slots_of_either_type_pass_through_build():
    assert build("tagnn", V, dim=D, null_slots=3).null_slots == 3
    found = build("tagnn", V, dim=D, null_slots="official", pad_to_train=69, pad_to_test=40)
    assert (found.null_slots, found.pad_to_train, found.pad_to_test) == ("official", 69, 40)
    with pytest.raises(ValueError, match=r"tagnn: null_slots is str \| int, got 0.5"):
        build("tagnn", V, dim=D, null_slots=0.5)
