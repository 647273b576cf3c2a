"""Recommendations: raw ids in, a ranked shelf of raw ids out, whatever the session looks like."""

import warnings

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toys import random_clicks, random_sessions

from sbr_core import checkpoints
from sbr_core.batches import Batch
from sbr_core.item_index import PIECE
from sbr_core.models import build
from sbr_core.models.counting import Markov
from sbr_core.models.gru4rec import GRU4Rec
from sbr_core.models.stamp import STAMP
from sbr_core.recommend import Recommender
from sbr_core.sessions import Sessions

V = 30
TRAIN = random_sessions(60, V)
COUNTS = torch.bincount(TRAIN.clicks.long(), minlength=V)
NUMBERS = np.arange(V) * 7 + 1000
WORDS = np.array([f"item-{number}" for number in range(V)])


def recommender(item_ids=NUMBERS):
    torch.manual_seed(0)
    return Recommender(GRU4Rec(V, 8), item_ids, COUNTS)


def popular(item_ids, k):
    """(items, scores) of the most clicked items."""
    order = sorted(range(V), key=lambda row: -int(COUNTS[row]))[:k]
    return [item_ids[row] for row in order], [int(COUNTS[row]) / int(COUNTS.sum()) for row in order]


@pytest.mark.parametrize("item_ids", [NUMBERS, WORDS], ids=["numbers", "words"])
def test_the_shelf_is_the_model_s_scores_sorted(item_ids):
    found = recommender(item_ids)
    rows = [3, 9, 3, 21]
    with torch.no_grad():
        scores = found.model.score(found.model.encode(Batch.of([rows], V)))[0].tolist()
    items, values = found.recommend([item_ids.tolist()[row] for row in rows], k=V)
    assert items == [item_ids.tolist()[row] for row in sorted(range(V), key=lambda row: -scores[row])]
    assert values == pytest.approx(sorted(scores, reverse=True), rel=1e-6)
    assert found.recommend([item_ids.tolist()[row] for row in rows], k=4) == (items[:4], values[:4])
    assert all(type(item) is type(item_ids.tolist()[0]) for item in items)


def test_a_model_is_asked_in_evaluation_mode():
    torch.manual_seed(0)
    model = GRU4Rec(V, 8, dropout=0.9).train()
    found = Recommender(model, NUMBERS, COUNTS)
    assert not model.training and found.recommend([1000, 1007]) == found.recommend([1000, 1007])


def test_a_batch_answers_as_one_session_at_a_time():
    found = recommender()
    sessions = [[1000], [1007, 1000, 1007, 1014], [], [1203] * 30, [1021, 1028], [5]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = found.recommend_batch(sessions, k=5)
        alone = [found.recommend(session, k=5) for session in sessions]
    assert [items for items, _ in together] == [items for items, _ in alone]
    for (_, one), (_, two) in zip(together, alone, strict=True):
        assert one == pytest.approx(two, rel=1e-5)


def test_unknown_items_are_skipped_with_a_warning():
    found = recommender()
    with pytest.warns(UserWarning, match="2 of 4 clicks are unknown to the model and skipped: 5, 99"):
        answer = found.recommend([1000, 5, 1007, 99])
    assert answer == found.recommend([1000, 1007])
    with pytest.warns(UserWarning, match=r"7 of 7 clicks are unknown .*: 0, 1, 2, 3, 4 \.\.\."):
        found.recommend(list(range(7)))


def test_known_sessions_are_answered_without_a_warning(recwarn):
    recommender().recommend([1000, 1007])
    recommender().recommend([])
    assert not recwarn.list


@pytest.mark.parametrize("clicks", [[], [5], [5, 6, 7]])
def test_a_session_of_which_nothing_is_known_is_answered_by_popularity(clicks):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        items, scores = recommender().recommend(clicks, k=6)
    best, shares = popular(NUMBERS.tolist(), 6)
    assert scores == pytest.approx(shares, rel=1e-6)
    counts = dict(zip(NUMBERS.tolist(), COUNTS.tolist(), strict=True))
    assert [counts[item] for item in items] == [counts[item] for item in best]


def test_numpy_numbers_are_numbers():
    found = recommender()
    assert found.recommend(list(np.array([1000, 1007]))) == found.recommend([1000, 1007])


@pytest.mark.parametrize("k", [0, -1, V + 1])
def test_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=rf"k must lie in 1\.\.{V} \(the catalogue\), got {k}"):
        recommender().recommend([1000], k)


def test_text_is_read_as_the_catalogue_has_its_ids():
    assert recommender().parse("1000, 1007,,1000 ") == [1000, 1007, 1000] and recommender().parse("") == []
    assert recommender(WORDS).parse("item-3, item-4") == ["item-3", "item-4"]
    with pytest.raises(ValueError, match="items of this model are integers, separated by commas; got '1000;1007'"):
        recommender().parse("1000;1007")


ODD = ["a, b", 'wide "x"', " padded ", "padded", '"', "plain", "two\nlines", "mug 3"]


@pytest.mark.parametrize("text, ids", [
    ('"a, b",plain', ["a, b", "plain"]), ('"wide ""x""",plain', ['wide "x"', "plain"]), ('wide "x"', ['wide "x"']),
    (" padded , plain", [" padded ", "plain"]), ("padded, padded", ["padded", "padded"]), ('""""', ['"']),
    ('"two\nlines",plain', ["two\nlines", "plain"]), ("plain\npadded\n", ["plain", "padded"]),
    (", ,plain,", ["plain"]), ("", []), (" mug 3 , mug 4 ", ["mug 3", "mug 4"]),
])  # fmt: skip
def test_an_id_with_commas_quotes_or_spaces_at_an_end_is_quoted_as_in_a_csv_file(text, ids):
    found = Recommender(GRU4Rec(len(ODD), 4), np.array(ODD), torch.ones(len(ODD)))
    assert found.parse(text) == ids


@pytest.mark.parametrize("item_ids", [NUMBERS, WORDS, NUMBERS.astype(np.int32)], ids=["int64", "words", "int32"])
def test_a_saved_recommender_answers_the_same(item_ids, tmp_path):
    before = recommender(item_ids)
    path = before.save(tmp_path / "new", "gru4rec", {"dim": 8})
    after = Recommender.load(tmp_path / "new")
    clicks = [[item_ids.tolist()[row] for row in rows] for rows in ([1], [2, 3, 2], [])]
    assert path == tmp_path / "new" / "model.safetensors"
    assert after.recommend_batch(clicks, 7) == before.recommend_batch(clicks, 7)
    assert after.item_ids.tolist() == item_ids.tolist() and torch.equal(after.counts, before.counts)


def test_arguments_are_saved_with_the_model(tmp_path):
    arguments = {"dim": 8, "add_mean": True, "biases": False, "clip_norm": 1.5}
    Recommender(STAMP(V, **arguments), NUMBERS, COUNTS).save(tmp_path, "stamp", arguments)
    model = Recommender.load(tmp_path).model
    assert isinstance(model, STAMP) and (model.add_mean, model.clip_norm, model.W1.bias) == (True, 1.5, None)


def test_a_counting_model_is_saved_with_its_counts(tmp_path):
    model = Markov(V).fit(TRAIN)
    before = Recommender(model, NUMBERS, COUNTS)
    before.save(tmp_path, "markov", {})
    after = Recommender.load(tmp_path)
    for row in range(V):
        assert after.recommend([int(NUMBERS[row])], 3) == before.recommend([int(NUMBERS[row])], 3)


def test_of_a_dataset_takes_its_ids_and_counts():
    from sbr_core import datasets

    demo = datasets.load("demo")
    found = Recommender.of(GRU4Rec(demo.num_items, 4), demo)
    assert found.item_ids.tolist() == demo.item_ids.tolist() and found.counts.sum() == demo.train.num_clicks


def test_files_that_are_no_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="model.safetensors does not exist; `sbr train --output"):
        Recommender.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 50)
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        Recommender.load(tmp_path)


def test_a_model_of_a_name_that_is_gone_is_refused(tmp_path):
    path = recommender().save(tmp_path, "gru4rec", {"dim": 8})
    tensors, info = checkpoints.read(path)
    checkpoints.write(path, tensors, info | {"model": "gru5rec"})
    with pytest.raises(ValueError, match="there is no model 'gru5rec'"):
        Recommender.load(tmp_path)


def test_items_of_equal_score_come_in_the_order_of_the_catalogue(monkeypatch):
    model = build("pop", 6).fit(Sessions.from_lists([[4, 0], [1, 3], [2, 5]], 6))
    recommender = Recommender(model, np.arange(6), torch.ones(6))
    monkeypatch.setattr(recommender.model, "scores", lambda batch: torch.tensor([[1.0, 3.0, 1.0, 3.0, 1.0, 0.0]]))
    for k, items in ((1, [1]), (2, [1, 3]), (3, [1, 3, 0]), (4, [1, 3, 0, 2]), (6, [1, 3, 0, 2, 4, 5])):
        assert recommender.recommend([0], k)[0] == items


def test_many_sessions_are_answered_in_pieces_as_one_by_one(monkeypatch):
    monkeypatch.setattr("sbr_core.recommend.CHUNK", 3)
    torch.manual_seed(0)
    recommender = Recommender(build("stamp", 9, dim=4), np.arange(9), torch.ones(9))
    torch.nn.init.normal_(recommender.model.table)
    sessions = [[1], [], [2, 3], [4], [5, 5], [6], [7, 1, 2], [8]]
    together = recommender.recommend_batch(sessions, 4)
    assert [items for items, _ in together] == [recommender.recommend(session, 4)[0] for session in sessions]


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor holds that is made inside; views do not count."""

    numbers = 0

    def __torch_dispatch__(self, operation, types, arguments=(), more=None):
        """Do it, and measure what it gives."""
        found = operation(*arguments, **(more or {}))
        made = [x.untyped_storage().nbytes() // x.itemsize for x in tree_leaves(found) if isinstance(x, torch.Tensor)]
        self.numbers = max([self.numbers, *made])
        return found


def many(V, count):
    """A STAMP over V items, and sessions to ask it for."""
    torch.manual_seed(0)
    return Recommender(build("stamp", V, dim=2), np.arange(V), torch.ones(V)), random_clicks(count, V)


def test_scores_that_are_products_are_held_for_a_piece_of_the_catalogue():
    recommender, sessions = many(3 * PIECE, 40)
    with Largest() as largest:
        recommender.recommend_batch(sessions, k=5)
    assert 40 * PIECE <= largest.numbers < 41 * PIECE


def test_as_many_sessions_are_answered_at_a_time_as_their_scores_have_room(monkeypatch):
    monkeypatch.setattr("sbr_core.recommend.CHUNK_SCORES", 20_000)
    recommender, sessions = many(3000, 40)
    with Largest() as largest:
        recommender.recommend_batch(sessions, k=5)
    assert 6 * 3000 == largest.numbers  # 20,000 // (3000 + 5 * 2)
    markov = build("markov", 3000).fit(random_sessions(40, 3000))
    with Largest() as largest:
        Recommender(markov, np.arange(3000), torch.ones(3000)).recommend_batch(sessions, k=5)
    assert 6 * 3000 == largest.numbers


@pytest.mark.parametrize("arguments", [{"normalise": True}, {"similarity": "distance"}, {"scale": 3.0}])
def test_scores_of_the_shelf_are_the_model_s_whatever_is_searched(arguments):
    torch.manual_seed(0)
    found = Recommender(build("stamp", V, dim=8, **arguments), NUMBERS, COUNTS)
    torch.nn.init.normal_(found.model.table)
    with torch.no_grad():
        scores = found.model.score(found.model.encode(Batch.of([[3, 9]], V)))[0]
    items, values = found.recommend(NUMBERS[[3, 9]].tolist(), k=7)
    assert items == NUMBERS[scores.argsort(descending=True)[:7]].tolist()
    assert values == pytest.approx(scores.sort(descending=True).values[:7].tolist(), rel=1e-5)


def test_vectors_of_the_items_are_made_once(monkeypatch):
    found, calls = recommender(), []
    search = found.model.search_items
    monkeypatch.setattr(found.model, "search_items", lambda: calls.append(1) or search())
    assert found.recommend([1000]) == found.recommend([1000]) and len(calls) == 1


def test_items_of_equal_vectors_come_in_the_order_of_the_catalogue():
    found = recommender()
    with torch.no_grad():
        found.model.table[[4, 7, 11, 20]] = 50 * found.model.encode(Batch.of([[1]], V))
    assert found.recommend([1007], k=3)[0] == NUMBERS[[4, 7, 11]].tolist()
    assert found.recommend([1007], k=5)[0][:4] == NUMBERS[[4, 7, 11, 20]].tolist()


def test_clicks_may_be_a_tensor_or_an_array():
    asked, clicks = recommender(), [1014, 1021]
    assert asked.recommend(torch.tensor(clicks)) == asked.recommend(np.array(clicks)) == asked.recommend(clicks)


def test_a_number_is_written_as_people_write_it():
    with pytest.raises(ValueError, match="the items of this model are integers, separated by commas; got '10_14'"):
        recommender().parse("10_14")


def test_a_model_is_read_back_with_the_defaults_that_it_was_saved_with(tmp_path):
    model = build("stamp", V, dim=8)
    path = Recommender(model, NUMBERS, COUNTS).save(tmp_path, "stamp", {"dim": 8})
    tensors, info = checkpoints.read(path)
    assert info["constructor"]["add_mean"] is False
    checkpoints.write(path, tensors, info | {"constructor": info["constructor"] | {"add_mean": True}})
    assert Recommender.load(tmp_path).model.add_mean


@pytest.mark.parametrize("rows", [slice(3, 4), slice(None)], ids=["one item", "all"])
@pytest.mark.parametrize("name", ["stamp", "tagnn"])
def test_a_model_that_has_diverged_recommends_nothing(name, rows):
    model = build(name, V, dim=8).eval()
    model.table.data[rows] = torch.nan
    with pytest.raises(ValueError, match="a score is NaN: the model has diverged"):
        Recommender(model, NUMBERS, COUNTS).recommend([NUMBERS[5].item()], k=5)
