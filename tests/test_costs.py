"""What a run costs: scaled from the record that is most like it, from the benchmark, or from the assumed card."""

import json

import pytest
from toys import put, record

from sbr_core import costs, plan
from sbr_core.recipes import recipe
from sbr_core.sources import EXPECTED

SMALL, DIGI = (EXPECTED[name] for name in ("yoochoose1_64", "diginetica"))


def job(system, dataset="yoochoose1_64", seed=0, variant="", select=True, **changes):
    changes = {"variant": variant, "select": select} | changes
    return plan.Job(plan.varied(system, dataset, **changes), dataset, seed)


def held(system, dataset="yoochoose1_64", epochs=2, seconds=100.0, select=100.0, beside=8.0, **more):
    """A record of some epochs of so many seconds in either run, and so many beside training after each of them."""
    variant, arguments = more.pop("variant", ""), more.pop("arguments", {})
    found = record(system, dataset, variant=variant)
    found["runs"]["final"] = [dict(found["runs"]["final"][1], epoch=n + 1, seconds=seconds) for n in range(epochs)]
    found["runs"]["select"] = [
        {"epoch": n + 1, "validation": {"MRR@20": 1.0}, "seconds": select} for n in range(epochs)
    ]
    found |= costs.records.both_columns(found["runs"])
    found["seconds"] = epochs * (seconds + select + 2 * beside)
    found["recipe"] = {"arguments": recipe(system, dataset).arguments | arguments, "config": found["recipe"]["config"]}
    found["recipe"]["config"] |= {"epochs": epochs, "precision": "fp32"} | more.pop("config", {})
    return found | more


def bench(folder, **rows):
    """A benchmark of systems on datasets: system__dataset = its row."""
    found = [{"model": key.split("__")[0], "dataset": key.split("__")[1]} | row for key, row in rows.items()]
    (folder / "studies").mkdir(exist_ok=True)
    (folder / "studies" / "speed.json").write_text(json.dumps(found))


def test_the_price_of_an_example_holds_its_auxiliary_tasks(tmp_path):
    bench(
        tmp_path,
        stamp__yoochoose1_64={"examples_per_second": 4000.0},
        lgsr__demo={"examples_per_second": 500.0, "task_ms_per_example": 0.5},
    )
    assert plan.speeds(tmp_path) == {("stamp", "yoochoose1_64"): 0.25, ("lgsr", "demo"): 2.5}
    assert plan.speeds(tmp_path / "nothing") == {}


def test_a_record_of_four_epochs_stands_for_four_of_the_plan_s_six(tmp_path):
    wanted = job("sr-gnn")
    assert wanted.recipe.config.epochs == 6
    put(tmp_path, held("sr-gnn", epochs=4, seconds=100.0, select=90.0, beside=8.0))
    assert costs.Costs(tmp_path).seconds(wanted) == (pytest.approx(6 * (100 + 90 + 2 * 8)), "estimated")
    put(tmp_path, held("sr-gnn", epochs=6, seconds=100.0, select=90.0, beside=8.0))
    took = pytest.approx(6 * (100 + 90 + 2 * 8))
    assert costs.Costs(tmp_path).seconds(wanted) == (took, "measured")
    assert costs.Costs(tmp_path).seconds(job("sr-gnn", seed=3)) == (took, "measured")
    put(tmp_path, held("sr-gnn", epochs=6, seconds=100.0, select=90.0, beside=8.0, config={"precision": "bf16"}))
    assert costs.Costs(tmp_path).seconds(wanted) == (took, "estimated")


def test_a_run_without_a_select_run_costs_its_final_run_alone(tmp_path):
    put(tmp_path, held("sr-gnn", epochs=6, seconds=100.0, select=90.0, beside=8.0))
    once = job("sr-gnn", variant="once", select=False)
    assert costs.Costs(tmp_path).seconds(once) == (pytest.approx(6 * (100 + 8)), "estimated")


def test_an_epoch_during_which_the_machine_slept_does_not_count(tmp_path):
    slept = held("sr-gnn", epochs=6, seconds=100.0, select=90.0, beside=8.0)
    slept["runs"]["final"][3]["seconds"] += 5_000
    slept["seconds"] += 5_000
    put(tmp_path, slept)
    assert costs.Costs(tmp_path).seconds(job("sr-gnn")) == (pytest.approx(6 * (100 + 90 + 2 * 8)), "measured")


def test_of_a_continued_run_the_benchmark_says_how_long_the_ranking_takes(tmp_path):
    ranking = {"examples_per_second": 4000.0, "evaluation_ms_per_example": 0.5}
    bench(tmp_path, **{"sr-gnn__yoochoose1_64": ranking})
    put(tmp_path, held("sr-gnn", epochs=6, seconds=100.0, select=90.0) | {"seconds": 1.0})
    ranked = SMALL["test_examples"] + 0.1 * SMALL["train_examples"]
    assert costs.Costs(tmp_path).seconds(job("sr-gnn"))[0] == pytest.approx(6 * (190 + ranked * 0.5e-3))


def test_without_a_record_the_benchmark_s_step_and_ranking_are_multiplied(tmp_path):
    bench(tmp_path, **{"sr-gnn__yoochoose1_64": {"examples_per_second": 4000.0, "evaluation_ms_per_example": 0.5}})
    ranked = SMALL["test_examples"] + 0.1 * SMALL["train_examples"]
    took = 6 * (1.9 * SMALL["train_examples"] / 4000 + ranked * 0.5e-3)
    assert costs.Costs(tmp_path).seconds(job("sr-gnn")) == (pytest.approx(took), "estimated")
    ranked = DIGI["test_examples"] + 0.1 * DIGI["train_examples"]
    items = DIGI["items"] / SMALL["items"]
    took = 6 * (1.9 * DIGI["train_examples"] * items / 4000 + ranked * 0.5e-3)
    assert costs.Costs(tmp_path).seconds(job("sr-gnn", "diginetica")) == (pytest.approx(took), "estimated")
    assert costs.Costs(tmp_path).seconds(job("gru4rec")) == (None, "unknown")
    assert costs.Costs(tmp_path).seconds(job("pop")) == (60.0, "estimated")


def test_another_dataset_s_record_is_scaled_by_examples_and_with_a_full_softmax_by_items(tmp_path):
    put(tmp_path, held("stamp", epochs=8, seconds=100.0, select=90.0, beside=8.0))
    took = 8 * 206 * DIGI["train_examples"] / SMALL["train_examples"]
    full = took * DIGI["items"] / SMALL["items"]
    assert costs.Costs(tmp_path).seconds(job("stamp", "diginetica")) == (pytest.approx(full), "estimated")
    sampled = {"loss": "triplet", "l2": 0.0}
    put(tmp_path, held("stamp", epochs=8, seconds=100.0, select=90.0, beside=8.0, variant="t", config=sampled))
    wanted = job("stamp", "diginetica", variant="t", config=sampled)
    assert costs.Costs(tmp_path).seconds(wanted) == (pytest.approx(took), "estimated")
    other = job("stamp", variant="u", config={"loss": "negative-sampling", "l2": 0.0})
    assert costs.Costs(tmp_path).seconds(other) == (None, "unknown")  # a full softmax says nothing about it


def test_more_walks_cost_more_as_the_record_without_walks_says(tmp_path):
    lgsr = held("lgsr", epochs=6, seconds=300.0, select=300.0, beside=0.0)
    put(tmp_path, lgsr)
    put(tmp_path, held("lgsr", epochs=6, seconds=100.0, select=100.0, beside=0.0, variant="c", arguments={"g": 0}))

    def took(**arguments):
        return costs.Costs(tmp_path).seconds(job("lgsr", variant="x", arguments=arguments))[0] / 12

    assert took() == pytest.approx(300.0)
    assert took(g=4) == pytest.approx(500.0) and took(g=1) == pytest.approx(200.0)
    assert took(rounds=26) == pytest.approx(500.0) and took(length=25) == pytest.approx(200.0)
    assert 300 < took(negatives=1024) < 500 and 200 < took(window=4) < 300
    assert took(dim=50) == pytest.approx(150.0)


def test_a_record_of_other_walks_does_not_say_what_those_of_the_recipe_take(tmp_path):
    put(tmp_path, held("lgsr", epochs=6, seconds=300.0, select=300.0))
    put(tmp_path, held("lgsr", epochs=6, seconds=100.0, select=100.0, variant="c", arguments={"g": 0}))
    wanted = job("lgsr", variant="x", arguments={"g": 4})
    before = costs.Costs(tmp_path).seconds(wanted)
    put(tmp_path, held("lgsr", epochs=6, seconds=120.0, select=120.0, variant="d", arguments={"rounds": 1}))
    assert costs.Costs(tmp_path).seconds(wanted) == before


def test_of_records_that_are_alike_that_of_the_same_seed_is_asked(tmp_path):
    for seed in (0, 1, 2):
        put(tmp_path, held("sr-gnn", epochs=6, seconds=100.0 + seed, select=90.0, beside=5.0, seed=seed))
    took = [costs.Costs(tmp_path).seconds(job("sr-gnn", seed=seed))[0] for seed in (0, 1, 2)]
    assert took == pytest.approx([6 * 200, 6 * 201, 6 * 202])


def test_the_record_of_the_same_variant_is_asked_first_then_that_of_the_same_dataset(tmp_path):
    put(tmp_path, held("tagnn", epochs=6, seconds=10.0, select=10.0, beside=0.0))
    put(tmp_path, held("tagnn", "diginetica", epochs=6, seconds=20.0, select=20.0, beside=0.0))
    wanted = job("tagnn", "diginetica", variant="last", arguments={"readout": "L"})
    assert costs.Costs(tmp_path).seconds(wanted)[0] == pytest.approx(240)
    put(tmp_path, held("tagnn", epochs=6, seconds=10.0, select=10.0, beside=0.0, variant="last"))
    scaled = DIGI["train_examples"] / SMALL["train_examples"] * DIGI["items"] / SMALL["items"]
    assert costs.Costs(tmp_path).seconds(wanted)[0] == pytest.approx(120 * scaled)


def test_what_is_no_record_does_not_count(tmp_path):
    put(tmp_path, held("sr-gnn", epochs=6)).write_text('{"half"')
    assert costs.Costs(tmp_path).seconds(job("sr-gnn")) == (None, "unknown")


def test_a_card_takes_the_launches_of_every_step_and_a_part_of_the_cpu_s_time(tmp_path):
    put(tmp_path, held("sr-gnn", epochs=6, seconds=100.0, select=90.0, beside=5.0))
    bench(tmp_path, **{"sr-gnn__demo": {"examples_per_second": 2e4, "step_ms": 5.0}})
    steps = 1.9 * 6 * SMALL["train_examples"] / 100
    took = costs.START + 6 * 200 * costs.CPU_FLOPS / costs.GPU_FLOPS + steps * 5e-3
    assert costs.Costs(tmp_path, "cuda").seconds(job("sr-gnn")) == (pytest.approx(took), "estimated")
    assert costs.Costs(tmp_path, "cuda").seconds(job("lessr")) == (None, "unknown")
    assert costs.Costs(tmp_path, "cuda").seconds(job("pop")) == (60.0, "estimated")


def test_a_card_s_walks_are_steps_too(tmp_path):
    row = {"examples_per_second": 4e3, "task_ms_per_example": 0.05, "skip-gram_steps": 1000.0}
    demo = {"examples_per_second": 2e4, "step_ms": 5.0, "skip-gram_step_ms": 2.0}
    bench(tmp_path, lgsr__yoochoose1_64=row, lgsr__demo=demo)
    without = costs.Costs(tmp_path, "cuda").seconds(job("lgsr", variant="c", arguments={"g": 0}))[0]
    cpu = costs.Costs(tmp_path)
    saved = cpu.seconds(job("lgsr"))[0] - cpu.seconds(job("lgsr", variant="c", arguments={"g": 0}))[0]
    more = saved * costs.CPU_FLOPS / costs.GPU_FLOPS + 1.9 * 6 * 1000 * 2e-3
    assert costs.Costs(tmp_path, "cuda").seconds(job("lgsr"))[0] - without == pytest.approx(more)


def test_a_record_made_on_a_card_says_nothing_of_a_cpu_and_all_of_the_card(tmp_path):
    put(tmp_path, held("sr-gnn", epochs=6, seconds=3.0, select=2.0, beside=1.0, device="NVIDIA H200"))
    assert costs.Costs(tmp_path, "cuda:0").seconds(job("sr-gnn")) == (pytest.approx(42.0), "measured")
    assert costs.Costs(tmp_path).seconds(job("sr-gnn")) == (None, "unknown")


def test_workers_share_out_the_host_s_part_of_a_card_s_time_and_all_of_a_cpu_s(tmp_path):
    put(tmp_path, held("sr-gnn", epochs=6, seconds=100.0, select=90.0, beside=5.0))
    bench(tmp_path, **{"sr-gnn__demo": {"examples_per_second": 2e4, "step_ms": 5.0}})
    card, cpu, wanted = costs.Costs(tmp_path, "cuda"), costs.Costs(tmp_path), job("sr-gnn")
    arithmetic = 6 * 200 * costs.CPU_FLOPS / costs.GPU_FLOPS
    host = costs.START + 1.9 * 6 * SMALL["train_examples"] / 100 * 5e-3
    assert card.undivided(wanted) == pytest.approx(arithmetic) and cpu.undivided(wanted) == 0
    assert card.total([wanted] * 8) == pytest.approx(8 * (host + arithmetic))
    assert card.total([wanted] * 8, workers=4) == pytest.approx(2 * host + 8 * arithmetic)
    assert cpu.total([wanted] * 8, workers=4) == pytest.approx(2 * cpu.seconds(wanted)[0])
    assert card.undivided(job("pop")) == card.undivided(job("lessr")) == card.total([job("lessr")]) == 0
    put(tmp_path, held("sr-gnn", epochs=6, seconds=300.0, select=200.0, beside=1.0, device="NVIDIA H200"))
    assert costs.Costs(tmp_path, "cuda").undivided(wanted) == pytest.approx(6 * 502 - host)
