"""RepeatNet against its equations in a loop, the figures printed in the specs, and its invariants."""

import math

import pytest
import torch
from torch.nn import functional as F

from sbr_core.batches import Batch
from sbr_core.losses import FullSoftmax, Scores
from sbr_core.models.gru4rec import GRU4Rec
from sbr_core.models.repeatnet import EXPLORE, REPEAT, RepeatNet, RepeatQuery, _Mixture
from sbr_core.optim import make_optimizers
from sbr_core.recipes import recipe
from sbr_core.train import train_step

V, D = 9, 4
SESSIONS = [[3], [5, 5], [1, 2, 1, 3], [7, 7, 7, 0, 7], [0, 1, 2, 0, 1, 2, 0, 8], [6, 4, 2]]
TARGETS = torch.tensor([0, 5, 1, 3, 8, 6])  # new, repeated (also the only item), repeated, new, repeated, repeated


def model_of(**arguments) -> RepeatNet:
    """A double-precision model with parameters large enough to see every term, without dropout."""
    torch.manual_seed(3)
    model = RepeatNet(V, D, **arguments).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return model


def scores(model, *sessions):
    return model.score(model.encode(Batch.of([list(session) for session in sessions], V)))


def gru_loop(gru, x) -> list[torch.Tensor]:
    """The states of one session, gate by gate."""
    W, U, b, c = gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0, gru.bias_hh_l0
    size, states = gru.hidden_size, [x[0].new_zeros(gru.hidden_size)]
    for x_t in x:
        h, (W_r, W_z, W_n), (U_r, U_z, U_n) = states[-1], W.split(size), U.split(size)
        (b_r, b_z, b_n), (c_r, c_z, c_n) = b.split(size), c.split(size)
        r = torch.sigmoid(W_r @ x_t + b_r + U_r @ h + c_r)
        z = torch.sigmoid(W_z @ x_t + b_z + U_z @ h + c_z)
        n = torch.tanh(W_n @ x_t + b_n + r * (U_n @ h + c_n))
        states.append((1 - z) * n + z * h)
    return states[1:]


def forward_loop(model: RepeatNet, session: list[int]):
    """P of every item and of the two modes for one session, with plain probabilities."""
    h = gru_loop(model.gru, [model.table[item] for item in session])

    def attention(part):
        energy = [part.v.weight[0] @ torch.tanh(part.W.weight @ h[-1] + part.U.weight @ h_i) for h_i in h]
        total = sum(torch.exp(e) for e in energy)
        return [torch.exp(e) / total for e in energy]

    c_mode = sum(a * h_i for a, h_i in zip(attention(model.mode), h, strict=True))
    c_explore = sum(a * h_i for a, h_i in zip(attention(model.explore), h, strict=True))
    mode = [torch.exp(row @ c_mode) for row in model.W_m.weight]
    p_explore, p_repeat = mode[0] / (mode[0] + mode[1]), mode[1] / (mode[0] + mode[1])
    unseen = [item for item in range(V) if item not in session]
    logits = {item: torch.exp(model.W_o.weight[item] @ torch.cat([c_explore, h[-1]])) for item in unseen}
    probs = []
    for item in range(V):
        repeated = sum(a for a, x_i in zip(attention(model.repeat), session, strict=True) if x_i == item)
        explored = logits[item] / sum(logits.values()) if item in logits else 0
        probs.append(p_repeat * repeated + p_explore * explored)
    return torch.stack(probs), torch.stack([p_explore, p_repeat])


@pytest.mark.parametrize("mode_loss", [0.0, 0.7])
def test_value_and_gradients_equal_the_equations_in_a_loop(mode_loss):
    model = model_of(mode_loss=mode_loss)
    both = [forward_loop(model, session) for session in SESSIONS]
    torch.testing.assert_close(
        scores(model, *SESSIONS).exp(), torch.stack([probs for probs, _ in both]), rtol=0, atol=1e-12
    )
    loss = -torch.stack([probs[y].log() for (probs, _), y in zip(both, TARGETS, strict=True)]).mean()
    modes = [mode[int(y in session)] for (_, mode), y, session in zip(both, TARGETS.tolist(), SESSIONS, strict=True)]
    loss = loss - mode_loss * torch.stack(modes).log().mean()
    wanted = torch.autograd.grad(loss, list(model.parameters()))
    query = model.encode(Batch.of(SESSIONS, V))
    value, extra = FullSoftmax()(Scores(model, query), TARGETS), model.extra_loss(query, TARGETS)
    value = value if extra is None else value + extra
    assert value.item() == pytest.approx(loss.item(), abs=1e-12)
    value.backward()
    for (name, parameter), grad in zip(model.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(
            parameter.grad, grad, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("targets", [TARGETS, torch.tensor([3, 5, 2, 0, 8, 4]), torch.tensor([8, 0, 7, 1, 3, 5])])
def test_the_loss_over_new_targets_alone_is_that_of_all_scores(targets):
    """Some, all and none of the targets have been clicked; and the buffers serve the next batch as well."""
    model, loss = model_of(), FullSoftmax()
    for sessions, wanted in ((SESSIONS, targets), (SESSIONS[::-1], targets.flip(0))):
        values = []
        for make in (lambda scores, y: F.cross_entropy(scores(), y), loss):
            model.zero_grad()
            values.append(make(Scores(model, model.encode(Batch.of(sessions, V))), wanted))
            values[-1].backward()
            values.append([parameter.grad.clone() for parameter in model.parameters()])
        torch.testing.assert_close(values[0], values[2], rtol=0, atol=1e-12)
        torch.testing.assert_close(values[1], values[3], rtol=0, atol=1e-12)


def by_hand(items, mode, attention, logits) -> tuple[RepeatNet, RepeatQuery]:
    """A model of width 1 whose explore logits are those given, and a query with the probabilities given."""
    model = RepeatNet(len(logits), 1).double()
    with torch.no_grad():
        model.W_o.weight.copy_(torch.tensor([[logit, 0.0] for logit in logits]))
    query = RepeatQuery(
        torch.tensor([items]),
        torch.tensor([mode]).double().log(),
        torch.tensor([attention]).double().log(),
        torch.tensor([[1.0, 0.0]]).double(),
    )
    return model, query


def test_the_figures_of_the_specs():
    """Items 7, 8, 9, 10 are 0, 1, 2, 3 here."""
    model, query = by_hand([0, 2, 0], [0.4, 0.6], [0.2, 0.3, 0.5], [5.0, 1.0, 5.0, 0.0])
    expected = torch.tensor([[0.42, 0.292423, 0.18, 0.107577]]).double()
    torch.testing.assert_close(model.score(query).exp(), expected, rtol=0, atol=1e-6)


def test_the_first_mode_is_to_explore():
    model, query = by_hand([0], [0.25, 0.75], [1.0], [0.0, 0.0, 0.0])
    assert (EXPLORE, REPEAT) == (0, 1)
    expected = torch.tensor([[0.75, 0.125, 0.125]]).double()
    torch.testing.assert_close(model.score(query).exp(), expected, rtol=0, atol=1e-12)


def test_the_probabilities_sum_to_one_and_those_of_the_session_to_that_of_repeating():
    model = model_of()
    query = model.encode(Batch.of(SESSIONS, V))
    probs, mode = model.score(query).exp(), query.mode.exp()
    torch.testing.assert_close(probs.sum(1), torch.ones(len(SESSIONS)).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(mode.sum(1), torch.ones(len(SESSIONS)).double(), rtol=0, atol=1e-12)
    for row, p_repeat, session in zip(probs, mode[:, REPEAT], SESSIONS, strict=True):
        assert row[sorted(set(session))].sum().item() == pytest.approx(p_repeat.item(), abs=1e-12)


def test_a_session_on_one_item_repeats_that_item():
    model = model_of()
    query = model.encode(Batch.of([[5], [7, 7, 7]], V))
    probs = model.score(query).exp()[[0, 1], [5, 7]]
    torch.testing.assert_close(probs, query.mode[:, REPEAT].exp(), rtol=0, atol=1e-12)


def test_cross_entropy_finds_nothing_left_to_normalise():
    every = scores(model_of(), *SESSIONS)
    torch.testing.assert_close(every.log_softmax(1), every, rtol=0, atol=1e-12)


def test_a_model_that_never_repeats_is_a_softmax_without_the_sessions_items():
    model = model_of()
    query = model.encode(Batch.of(SESSIONS, V))
    never = query._replace(mode=torch.tensor([[0.0, -1e5]] * len(SESSIONS)).double())
    logits = query.explore @ model.W_o.weight.T
    for row, logit, session in zip(model.score(never), logits, SESSIONS, strict=True):
        unseen = [item for item in range(V) if item not in session]
        torch.testing.assert_close(row[unseen], logit[unseen].log_softmax(0), rtol=0, atol=1e-12)
        assert row[session].max() < -9e4


def test_exploring_from_the_last_state_alone_is_gru4rec_on_unseen_items():
    model, plain = model_of(), GRU4Rec(V, D).double().eval()
    plain.gru.load_state_dict(model.gru.state_dict())
    with torch.no_grad():
        plain.table.copy_(model.table)
        model.W_o.weight.copy_(torch.cat([torch.zeros(V, D), model.table[:V]], dim=1))
    query = model.encode(Batch.of(SESSIONS, V))
    wanted = plain.score(plain.encode(Batch.of(SESSIONS, V)))
    for row, logit, explore, session in zip(model.score(query), wanted, query.mode[:, EXPLORE], SESSIONS, strict=True):
        unseen = [item for item in range(V) if item not in session]
        torch.testing.assert_close(row[unseen], explore + logit[unseen].log_softmax(0), rtol=0, atol=1e-12)


def test_padding_reaches_none_of_the_attentions():
    model = model_of()
    alone, beside = (model.encode(Batch.of(sessions, V)) for sessions in ([[1, 2]], [[1, 2], [3] * 7]))
    for part, other in zip(alone[1:], beside[1:], strict=True):
        torch.testing.assert_close(part[0], other[0, : part.shape[1]], rtol=0, atol=1e-12)
    assert beside.repeat[0, 2:].eq(-torch.inf).all()


def test_the_explore_scores_of_seen_items_do_not_matter():
    model, target = model_of(), torch.tensor([4])
    for y in (target, torch.tensor([2])):
        model.zero_grad()
        F.cross_entropy(scores(model, [1, 2, 1, 3]), y).backward()
        assert model.W_o.weight.grad[[1, 2, 3]].eq(0).all()
        moved = model.W_o.weight.grad[[0, 4, 5, 6, 7, 8]].abs() > 1e-12  # what rounding leaves of nothing is 1e-17
        assert moved.all() if y == target else not moved.any()
    before = scores(model, [1, 2, 1, 3])
    with torch.no_grad():
        model.W_o.weight[[1, 2, 3]] += 50
    assert torch.equal(scores(model, [1, 2, 1, 3]), before)


def test_the_gradient_of_the_mixture_is_that_of_finite_differences():
    torch.manual_seed(0)
    items = torch.tensor([[1, 2, 1], [4, 4, 4], [0, 3, 0]])  # the last is the session [0, 3], padded with its first
    first = torch.tensor([[True, True, False], [True, False, False], [True, True, False]])
    query, W_o, explore = torch.randn(3, 4).double(), torch.randn(6, 4).double(), -torch.rand(3).double()
    each = torch.randn(3, 6).double().requires_grad_()  # a number for every item, as its clicks share it

    def mixture(query, W_o, explore, each):
        return _Mixture.apply(query, W_o, explore, items, first, each.gather(1, items))

    leaves = [tensor.requires_grad_() for tensor in (query, W_o, explore)]
    assert torch.autograd.gradcheck(mixture, (*leaves, each))


@pytest.mark.parametrize("mode_loss", [0.5, 1.0])
def test_the_mode_loss_asks_whether_the_target_was_clicked(mode_loss):
    model = model_of(mode_loss=mode_loss)
    query = model.encode(Batch.of(SESSIONS, V))
    wanted = [EXPLORE, REPEAT, REPEAT, EXPLORE, REPEAT, EXPLORE]
    expected = -mode_loss * query.mode[range(6), wanted].mean()
    torch.testing.assert_close(model.extra_loss(query, torch.tensor([0, 5, 1, 3, 8, 5])), expected, rtol=0, atol=1e-12)


def test_there_is_no_mode_loss_unless_it_is_asked_for():
    model = model_of()
    assert model.extra_loss(model.encode(Batch.of(SESSIONS, V)), TARGETS) is None


def test_training_adds_the_mode_loss():
    moved = []
    for mode_loss in (0.0, 1.0):
        model = model_of(mode_loss=mode_loss)
        before = model.W_m.weight.detach().clone()
        train_step(model, FullSoftmax(), [torch.optim.SGD(model.parameters(), lr=1.0)], Batch.of(SESSIONS, V))
        moved.append(model.W_m.weight.detach() - before)
    model = model_of(mode_loss=1.0)
    model.extra_loss(model.encode(Batch.of(SESSIONS, V)), Batch.of(SESSIONS, V).target).backward()
    torch.testing.assert_close(moved[1] - moved[0], -model.W_m.weight.grad, rtol=0, atol=1e-12)


def test_no_probability_underflows():
    """In plain float32, exp(-200) is 0 and its logarithm no number to learn from."""
    items, mode = torch.tensor([[0, 1]]), torch.tensor([[-200.0, 0.0]], requires_grad=True)
    repeat, explore = torch.tensor([[-300.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    model = RepeatNet(4, 1)
    with torch.no_grad():
        model.W_o.weight.copy_(torch.tensor([[0.0, 0], [0, 0], [150, 0], [-150, 0]]))
    loss = F.cross_entropy(model.score(RepeatQuery(items, mode, repeat, explore)), torch.tensor([3]))
    assert loss.item() == pytest.approx(500)
    loss.backward()
    assert mode.grad.isfinite().all() and model.W_o.weight.grad[3, 0].item() == pytest.approx(-1)
    assert model.score(RepeatQuery(items, mode, repeat, explore))[0, 0].item() == pytest.approx(-300)


def test_the_loss_over_new_targets_stays_finite_and_keeps_its_gradient():
    """Its value saturates where the softmax of the unseen items underflows."""
    model, mode = RepeatNet(4, 1), torch.tensor([[0.5, 0.5]]).log()
    with torch.no_grad():
        model.W_o.weight.copy_(torch.tensor([[0.0, 0], [0, 0], [100, 0], [-100, 0]]))
    query = RepeatQuery(torch.tensor([[0, 1]]), mode, torch.tensor([[-1.0, -1]]), torch.tensor([[1.0, 0]]))
    loss = FullSoftmax()(Scores(model, query), torch.tensor([3]))
    assert loss.item() == pytest.approx(87.33655 + math.log(2))  # log of the smallest normal float32
    loss.backward()
    assert model.W_o.weight.grad[:, 0].tolist() == pytest.approx([0, 0, 1, -1])


def test_another_precision_than_the_tables_is_refused():
    model = model_of()
    with pytest.raises(ValueError, match="precision='bf16' wants a model whose scores are a plain product"):
        FullSoftmax("bf16")(Scores(model, model.encode(Batch.of(SESSIONS, V))), TARGETS)


def test_a_session_on_the_whole_catalogue_can_only_repeat():
    model = model_of()
    query = model.encode(Batch.of([list(range(V))], V))
    every = model.score(query)
    torch.testing.assert_close(every.logsumexp(1), query.mode[:, REPEAT], rtol=0, atol=1e-12)
    F.cross_entropy(every, torch.tensor([2])).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model.W_o.weight.grad.eq(0).all()


def test_the_two_sides_of_the_attention_have_dropout_masks_of_their_own():
    torch.manual_seed(0)
    model, seen = RepeatNet(V, 64), {}
    model.train().mode.register_forward_pre_hook(lambda module, inputs: seen.update(g=inputs[0], k=inputs[1]))
    states, _ = model.gru(model.embed(torch.tensor([[1, 2]])))
    model.encode(Batch.of([[1, 2]], V))
    g, k = seen["g"][0], seen["k"][0, -1]
    for dropped in (g, k):
        kept = dropped != 0
        assert 15 < kept.sum() < 50
        torch.testing.assert_close(dropped[kept], 2 * states[0, -1][kept])
    assert ((g != 0) != (k != 0)).any()


def test_the_number_of_parameters_is_the_published_one():
    n = 50
    model = RepeatNet(n)
    assert sum(p.numel() for p in model.parameters()) == 300 * n + 121_100 + 100  # 100: the padding row
    assert model.W_o.weight.shape == (n, 200) and sum(p.numel() for p in model.gru.parameters()) == 60_600


def test_the_initialisation_is_glorots():
    model = RepeatNet(2000, 100)
    wanted = {
        "table": (2 / 2101) ** 0.5, "gru.weight_ih_l0": 0.1, "gru.weight_hh_l0": 0.1, "mode.W.weight": 0.1,
        "repeat.U.weight": 0.1, "explore.v.weight": (2 / 101) ** 0.5, "W_m.weight": (2 / 102) ** 0.5,
        "W_o.weight": (2 / 2200) ** 0.5,
    }  # fmt: skip
    for name, std in wanted.items():
        assert model.get_parameter(name).std().item() == pytest.approx(std, rel=0.2), name
    assert model.gru.bias_ih_l0.eq(0).all() and model.gru.bias_hh_l0.eq(0).all()


def test_the_first_loss_is_about_ln_v():
    torch.manual_seed(0)
    model, batch = RepeatNet(3000).eval(), Batch.of([[item] for item in range(100)], 3000)
    target = torch.arange(1000, 1100)
    loss = FullSoftmax()(Scores(model, model.encode(batch)), target).item()
    assert loss == pytest.approx(math.log(2999) + math.log(2), abs=0.1)  # half of the mass lies on the one clicked item


def test_adam_takes_the_tables_gradient():
    model = RepeatNet(V, D)
    table, W_o = model.table.detach().clone(), model.W_o.weight.detach().clone()
    train_step(model, FullSoftmax(), make_optimizers(model, lr=0.1), Batch.of([[1, 2]], V, target=[4]))
    assert (model.table != table).any(1).tolist() == [item in (1, 2) for item in range(V + 1)]
    assert (model.W_o.weight != W_o).any(1).tolist() == [item not in (1, 2) for item in range(V)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dropout": 1.0}, "dropout must lie in 0 <= dropout < 1, got 1.0"),
        ({"mode_loss": -1.0}, "mode_loss is a weight and must not be negative, got -1.0"),
        ({"dim": 0}, "num_items and dim must be at least 1, got 9 and 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RepeatNet(V, **arguments)


def test_the_scores_are_no_plain_product():
    model = model_of()
    assert model.linear(model.encode(Batch.of(SESSIONS, V))) is None and model.needs_all_items


@pytest.mark.parametrize("dataset, epochs", [("yoochoose1_64", 14), ("diginetica", 18)])
def test_the_recipe_is_the_public_codes(dataset, epochs):
    found = recipe("repeatnet", dataset)
    assert found.arguments == {"dim": 100, "dropout": 0.5} and RepeatNet(V, **found.arguments).mode_loss == 0
    config = found.config
    assert (config.batch_size, config.lr, config.lr_decay, config.lr_every) == (1024, 1e-3, 0.5, 3)
    assert (config.clip_grad, config.l2, config.epochs, config.batches) == (5.0, 0.0, epochs, "examples")
