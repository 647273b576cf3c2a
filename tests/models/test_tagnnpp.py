"""TAGNN++ in both forms against its equations in loops; its ablations, its invariants, its size."""

import math

import pytest
import torch
from target_loops import affine, assert_close_to_textbook, graph_states, head_scores, padding_state
from torch import nn
from torch.nn import functional as F

from sbr_core.agc import units
from sbr_core.batches import Batch
from sbr_core.losses import FullSoftmax, Scores
from sbr_core.models import build
from sbr_core.models.tagnn import TAGNN
from sbr_core.models.tagnnpp import TAGNNpp

V, D = 9, 4
SESSIONS = [[3], [5, 5], [1, 2, 1, 3], [4, 2, 3, 2, 1], [7, 7, 7, 0, 7], [8, 1, 2, 0, 1, 2, 0, 8]]
CODE = {"form": "code", "null_slots": "official", "pad_to_train": 12, "pad_to_test": 5}


def model_of(**arguments) -> TAGNNpp:
    torch.manual_seed(3)
    model = TAGNNpp(V, D, **{"dropout": 0.0} | arguments).double()
    for name, parameter in model.named_parameters():
        if "norm" in name:  # neither 1 nor 0, or a forgotten gain or shift would not be seen
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def scores(model, *sessions):
    return model.score(model.encode(Batch.of([list(session) for session in sessions], V)))


def normalised(norm, x):
    centred = x - x.mean()
    return norm.weight * centred / (centred.square().mean() + norm.eps).sqrt() + norm.bias


def attended(attention, x, sees):
    """Multi-head attention of every row i over the rows j with sees(i, j)."""
    heads, rows = attention.heads, []
    for i, asking in enumerate(x):
        joined = []
        for head in range(heads):
            part = slice(head * D // heads, (head + 1) * D // heads)
            q, total, weight = affine(attention.Q, asking)[part], 0, 0
            for j, other in enumerate(x):
                if sees(i, j):
                    key, value = affine(attention.KV, other).split(D)
                    e = (q @ key[part] / math.sqrt(D / heads)).exp()
                    total, weight = total + e * value[part], weight + e
            joined.append(total / weight)
        rows.append(affine(attention.O, torch.cat(joined)))
    return rows


def paper_loop(model, session):
    """Equations 7.1 to 7.3 of the specs."""
    if model.positions is not None:
        session = session[-model.max_positions :]
    states, x = graph_states(model, session), []
    for i, item in enumerate(session):
        place = i if model.positions is None or model.positions.counted_from == "start" else len(session) - 1 - i
        x.append(states[item] + (0 if model.positions is None else model.positions.table[place]))
    for block in model.blocks:
        heard = attended(block.attention, x, lambda i, j: j <= i or not model.causal)
        x = [normalised(block.norm1, a + b) for a, b in zip(x, heard, strict=True)]
        x = [normalised(block.norm2, a + affine(block.W2, torch.relu(affine(block.W1, a)))) for a in x]
    return head_scores(model.head, model.table, x)


def code_loop(model, session):
    """Equation 7.4 over the sorted nodes, the padding's node first, then 4.6 to 4.9 without the last state."""
    padding = 0
    if model.null_slots != "none":
        pad_to = model.pad_to_train if model.training else model.pad_to_test
        padding = max(pad_to - len(session), 0) if model.null_slots == "official" else model.null_slots
    states = graph_states(model, session)
    nodes = ([-1] if padding else []) + sorted(states)
    x = [padding_state(model) if node == -1 else states[node] for node in nodes]
    for block in model.blocks:
        heard = attended(block.attention, x, lambda i, j: j <= i)
        x = [a + normalised(block.norm, b) for a, b in zip(heard, x, strict=True)]
    after = dict(zip(nodes, x, strict=True))
    return head_scores(model.head, model.table, [after[item] for item in session], padding, after.get(-1))


VARIANTS = [
    {}, {"heads": 1}, {"blocks": 2}, {"causal": True}, {"positions": "end"}, {"positions": "none"}, {"steps": 0},
    {"steps": 2}, {"blocks": 0}, {"max_positions": 3}, {"max_positions": 3, "positions": "end"},
    CODE, {**CODE, "heads": 4}, {"form": "code"}, {"form": "code", "null_slots": 3}, {**CODE, "steps": 0},
    {**CODE, "blocks": 0},
]  # fmt: skip


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_value_and_gradients_equal_the_equations_in_a_loop(arguments):
    model, batch = model_of(**arguments), Batch.of(SESSIONS, V, target=[*range(len(SESSIONS))])
    loop = code_loop if model.form == "code" else paper_loop
    expected = torch.stack([loop(model, session) for session in SESSIONS])
    torch.testing.assert_close(scores(model, *SESSIONS), expected, rtol=0, atol=1e-12)
    loss = FullSoftmax()(Scores(model, model.encode(batch)), batch.target)
    assert_close_to_textbook(model, loss, F.cross_entropy(expected, batch.target))


# Ablations and reductions


def tagnn(model, **arguments) -> TAGNN:
    """TAGNN with the parameters that both have."""
    other = TAGNN(V, D, **arguments).double()
    other.load_state_dict({name: value for name, value in model.state_dict().items() if name in other.state_dict()})
    return other


def test_without_the_transformer_it_is_tagnn():
    model = model_of(blocks=0)
    assert {*model.state_dict()} == {*TAGNN(V, D).state_dict()} and not model.blocks and model.positions is None
    torch.testing.assert_close(scores(model, *SESSIONS), scores(tagnn(model), *SESSIONS), rtol=0, atol=1e-12)


CODE_OF_TAGNN = {"combine": "add", "attention_softmax": True, "hybrid": False}


def test_the_code_without_its_layer_is_the_nonhybrid_code_of_tagnn():
    padding = {name: value for name, value in CODE.items() if name != "form"}
    model = model_of(**CODE, blocks=0)
    other = tagnn(model, **CODE_OF_TAGNN, **padding)
    torch.testing.assert_close(scores(model, *SESSIONS), scores(other, *SESSIONS), rtol=0, atol=1e-12)


def test_a_silent_attention_beside_an_identity_is_the_nonhybrid_code_of_tagnn():
    model = model_of(**CODE)
    with torch.no_grad():
        for parameter in (*model.blocks[0].attention.KV.parameters(), *model.blocks[0].attention.O.parameters()):
            parameter.zero_()
    model.blocks[0].norm = nn.Identity()
    other = tagnn(model, **CODE_OF_TAGNN, null_slots="official", pad_to_train=12, pad_to_test=5)
    torch.testing.assert_close(scores(model, *SESSIONS), scores(other, *SESSIONS), rtol=0, atol=1e-12)


def test_the_ablations_have_no_idle_parameters():
    names = {name.split(".")[0] for name in model_of().state_dict()}
    assert names == {"table", "graph", "blocks", "positions", "head"}
    assert names - {name.split(".")[0] for name in model_of(steps=0).state_dict()} == {"graph"}
    assert names - {name.split(".")[0] for name in model_of(positions="none").state_dict()} == {"positions"}
    assert names - {name.split(".")[0] for name in model_of(blocks=0).state_dict()} == {"blocks", "positions"}


# Invariants


def test_order_is_seen_through_positions_alone_when_there_is_no_graph():
    one, two = [1, 2, 3, 4], [2, 3, 1, 4]
    blind, seeing = model_of(steps=0, positions="none"), model_of(steps=0)
    torch.testing.assert_close(scores(blind, one), scores(blind, two), rtol=0, atol=1e-12)
    assert not torch.allclose(scores(seeing, one), scores(seeing, two))


def test_a_causal_model_differs_and_keeps_its_first_states():
    model = model_of(causal=True)
    keys = [model.encode(Batch.of([session], V)).keys[0, :2] for session in ([1, 2, 3], [1, 2, 3, 4, 5])]
    model.graph = None  # the graph itself sees what comes next
    keys = [model.encode(Batch.of([session], V)).keys[0, :2] for session in ([1, 2, 3], [1, 2, 3, 4, 5])]
    torch.testing.assert_close(*keys, rtol=0, atol=1e-12)


def test_the_node_of_the_smallest_item_hears_itself_and_the_padding_alone():
    """New vectors for all other items change its state no further than through the graph, which is off here."""
    model, session = model_of(**CODE, steps=0), [5, 2, 7]
    seen = []
    for _ in range(2):
        seen.append(model.encode(Batch.of([session], V)).keys[0])
        with torch.no_grad():
            model.table[[5, 7]] += 1.0
    torch.testing.assert_close(seen[0][1], seen[1][1], rtol=0, atol=1e-12)
    assert not torch.allclose(seen[0][0], seen[1][0]) and not torch.allclose(seen[0][2], seen[1][2])
    with torch.no_grad():
        model.table[V] += 1.0
    assert not torch.allclose(model.encode(Batch.of([session], V)).keys[0, 1], seen[1][1])


def test_a_session_as_long_as_the_padding_has_no_node_of_it():
    padded, bare = model_of(**CODE).eval(), model_of(form="code").eval()
    long = [session for session in SESSIONS if len(session) >= CODE["pad_to_test"]]
    torch.testing.assert_close(scores(padded, *long), scores(bare, *long), rtol=0, atol=1e-12)
    assert not torch.allclose(scores(padded, [1, 2, 1, 3]), scores(bare, [1, 2, 1, 3]))


def test_the_code_depends_on_the_numbers_of_the_items_and_the_paper_does_not():
    order = torch.randperm(V)
    for arguments, same in (({}, True), ({"form": "code"}, False)):
        model = model_of(**arguments)
        before = scores(model, *SESSIONS)
        with torch.no_grad():
            model.table[order] = model.table[:V].clone()
        after = scores(model, *(order[session].tolist() for session in SESSIONS))
        assert torch.allclose(after[:, order], before) == same


def test_dropout_acts_in_training_alone():
    for form in ("paper", "code"):
        model = model_of(dropout=0.5, form=form)
        assert not torch.equal(scores(model.train(), *SESSIONS), scores(model, *SESSIONS))
        assert torch.equal(scores(model.eval(), *SESSIONS), scores(model, *SESSIONS))


# Size, initialisation, clipping


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("dim, published", [(100, 212_100), (120, 304_920)])
def test_the_code_has_as_many_parameters_as_published(dim, published):
    """21 d^2 + 21 d, of which d^2 + d are an edge map and 2 d^2 + d a map of the readout that it never uses."""
    assert published == 21 * dim * dim + 21 * dim
    found = size(TAGNNpp(50, dim, **CODE)) - 51 * dim
    assert found == published - (dim * dim + dim) - (2 * dim * dim + dim)


def test_the_initialisation_is_that_of_the_form():
    for form in ("paper", "code"):
        for name, parameter in TAGNNpp(500, 100, form=form).named_parameters():
            if "norm" in name and form == "paper":
                assert parameter.eq(1.0 if name.endswith("weight") else 0.0).all(), name
            else:
                assert 0.09 < parameter.abs().max() <= 0.1 and abs(parameter.mean()) < 0.03, name


def test_clipping_reaches_every_matrix_but_the_item_table():
    model = model_of()
    clipped = {id(parameter) for parameter in units(model, "nfnet")}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in clipped) == (parameter.ndim == 2 and name != "table"), name


# Refusals


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"form": "public"}, "form is 'paper' or 'code', got 'public'"),
        ({"blocks": -1}, "got blocks=-1 and dropout=0.0"),
        ({"dropout": 1.0}, "got blocks=1 and dropout=1.0"),
        ({"heads": 3}, "heads must divide dim, got heads=3 and dim=4"),
        ({"steps": -1}, "steps must be 0 or more"),
        ({"positions": "both"}, "positions is one of start, end, none, got 'both'"),
        ({"max_positions": 0}, "a table of positions needs at least one row, got 0"),
        ({"null_slots": 3}, "null_slots=3 belong to form='code'; form='paper' has none"),
        ({"form": "code", "positions": "end"}, "got blocks=1, causal=False and positions='end'"),
        ({"form": "code", "causal": True}, "got blocks=1, causal=True and positions='start'"),
        ({"form": "code", "blocks": 2}, "got blocks=2, causal=False"),
        ({"form": "code", "max_positions": 50}, "max_positions=50 .* and form='code' has none: leave it out"),
        ({"blocks": 0, "max_positions": 50}, "max_positions=50 .* and blocks=0 has none"),
        ({"positions": "none", "max_positions": 50}, "max_positions=50 .* and positions='none' has none"),
        ({"blocks": 0, "causal": True}, "blocks=0 has neither .* got causal=True and positions='start': leave"),
        ({"blocks": 0, "positions": "end"}, "blocks=0 has neither .* got causal=False and positions='end'"),
        ({"form": "code", "null_slots": "official"}, "wants the lengths .*, got None and None"),
    ],
)
def test_settings_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        model_of(**arguments)


def test_it_is_called_tagnn_plus_plus():
    assert isinstance(build("tagnn++", V, dim=D), TAGNNpp)
