"""The book's measurements: what collides is counted right, and the others return what the book reads."""

from collections import Counter
from itertools import combinations

from toys import random_clicks

from sbr_core import studies
from sbr_core.datasets import load
from sbr_core.sessions import Sessions

CLICKS = [[1, 2, 1, 2, 1, 3], [1, 2, 1, 3, 4], [1, 1, 1, 5], [3, 2, 1], [2, 3, 1]]


def test_inputs_are_the_prefixes_with_how_often_each_occurs():
    found = studies.inputs(Sessions.from_lists([[1, 2, 3], [1, 2, 4], [5]], 6))
    assert found == {(1,): 2, (1, 2): 2}


def test_two_inputs_collide_if_their_graph_and_last_click_agree():
    found = Counter({(1, 2, 1, 2, 1, 3): 1, (1, 2, 1, 3): 2, (3, 1, 2): 1})
    (group,) = studies.colliding(found, studies.VIEWS["graph, last click"])
    assert sorted(group) == [(1, 2, 1, 2, 1, 3), (1, 2, 1, 3)]
    assert studies.colliding(found, studies.VIEWS["counted graph, last click"]) == []
    assert len(studies.colliding(found, studies.VIEWS["items"])[0]) == 3


def test_collisions_equal_a_comparison_of_all_pairs():
    found = Counter(tuple(session) for session in random_clicks(150, 4, 5, seed=2))
    for view in studies.VIEWS.values():
        collide = {s for s, t in combinations(found, 2) if view(s) == view(t)}
        collide |= {t for s, t in combinations(found, 2) if view(s) == view(t)}
        groups = studies.colliding(found, view)
        assert {s for group in groups for s in group} == collide
        assert studies._size(groups, found)["examples"] == sum(found[s] for s in collide)


def test_repeats_are_counted_by_session():
    assert studies._repeats(Sessions.from_lists(CLICKS, 6)) == {
        "all": 5, "repeated item": 3, "immediate repeat": 1, "repeated step": 2,
    }  # fmt: skip


def test_the_study_of_a_dataset_holds_what_the_book_reads():
    found = studies.collision_study(["demo"])["datasets"]["demo"]
    data = load("demo")
    assert found["fingerprint"] == data.fingerprint and sum(found["session_lengths"]) == len(data.train)
    assert found["inputs"]["examples"] == data.statistics()["train_examples"]
    assert found["collisions"].keys() == studies.VIEWS.keys()


def test_the_study_of_speed_measures_each_system_in_its_own_process():
    (row,) = studies.speed_study(["stamp"], ["demo"], steps=2)
    assert (row["model"], row["dataset"], row["steps"]) == ("stamp", "demo", 2) and row["examples_per_second"] > 0


def test_the_study_of_the_softmax_has_a_row_per_catalogue():
    rows = studies.softmax_study((50, 60))["softmax"]
    assert [row["num_items"] for row in rows] == [50, 60]
