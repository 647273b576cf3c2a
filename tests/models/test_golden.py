"""The first twenty losses of every neural model at a fixed seed, as stored in tests/golden.

A refactor keeps them. A change of the mathematics, the initialisation or the order of the examples renews them:

    python tests/models/test_golden.py

and the commit says why they moved. The tolerance leaves room for the rounding of other processors.
"""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "golden"
STEPS = (0, 1, 0, 1, 0, 1, 2, 3)  # a session on items a, a + 1, ...: to and fro, then on
WALKS = {"rounds": 2, "length": 10, "window": 3, "negatives": 8, "pairs": 64}
CASES = {
    "gru4rec": ("gru4rec", {"dropout": 0.0}),  # without dropout: other versions of torch may draw other masks
    "gru4rec-2016": ("gru4rec-2016", {"dropout_hidden": 0.0}),
    "gru4rec-2018": ("gru4rec-2018", {}),
    "narm": ("narm", {"dropout": 0.0, "dropout_context": 0.0, "hidden": 9}),
    "narm-code": (
        "narm",
        {"dropout": 0.0, "dropout_context": 0.0, "attention": "softmax", "cell": "code", "hard": True},
    ),
    "stamp": ("stamp", {}),
    "stamp-code": ("stamp", {"add_mean": True, "biases": False, "clip_norm": 1.0}),
    "sr-gnn": ("sr-gnn", {}),
    "sr-gnn-nonhybrid-2-steps": ("sr-gnn", {"hybrid": False, "steps": 2}),
    "sr-gnn-count": ("sr-gnn", {"edge_weight": "count"}),
    "gc-san": ("gc-san", {"dropout": 0.0}),
    "gc-san-shared": ("gc-san", {"dropout": 0.0, "blocks": 3, "share_blocks": True, "layer_norm": True}),
    "tagnn": ("tagnn", {}),
    "tagnn-code": (
        "tagnn",
        {"combine": "add", "attention_softmax": True, "null_slots": "official", "pad_to_train": 9, "pad_to_test": 5},
    ),
    "tagnnpp": ("tagnn++", {"dropout": 0.0}),
    "tagnnpp-code": ("tagnn++", {"dropout": 0.0, "form": "code", "null_slots": 4}),
    "lessr": ("lessr", {"dropout": 0.0}),
    "lessr-forward-mean": ("lessr", {"dropout": 0.0, "clip": "forward", "aggregator": "mean", "dense": False}),
    "dgtn": ("dgtn", {"threshold": 0.3}),
    "dgtn-code": ("dgtn", {"inter": "none", "fusion": "max"}),
    "transformer": ("transformer", {"dropout": 0.0}),
    "transformer-start": ("transformer", {"dropout": 0.0, "positions": "start", "blocks": 2, "max_positions": 4}),
    "lgsr": ("lgsr", {"dropout": 0.0, "g": 0}),
    "lgsr-code": ("lgsr", {"dropout": 0.0, "g": 0, "residual": True, "hard_sigmoid": True, "max_positions": 4}),
    "repeatnet": ("repeatnet", {"dropout": 0.0, "mode_loss": 0.5}),
    "gru4rec-2016-parallel": ("gru4rec-2016", {"dropout_hidden": 0.0}),
    "gru4rec-2018-parallel": ("gru4rec-2018", {}),
    "gru4rec-2018-parallel-bpr-max": ("gru4rec-2018", {"embedding": "separate"}),
    "lgsr-walks": ("lgsr", {"dropout": 0.0, "g": 1} | WALKS),
    "lgsr-walks-code": ("lgsr", {"dropout": 0.0, "g": 2, "residual": True, "nce": True, "off_by_one": True} | WALKS),
    "csrm": ("csrm", {"input_dropout": 0.0, "dropout": 0.0, "neighbours": 8, "capacity": 50, "layer_norm": True}),
}


PARALLEL = {"batch_size": 8, "lr_every": None, "l2": 0.0, "optimizer": "adagrad", "batches": "session-parallel"}
CONFIGS = {  # cases that are trained by a configuration of their own, as the recipes of these systems are
    "gru4rec-2016-parallel": PARALLEL | {"lr": 0.05, "loss": "top1", "batches_arguments": {"end": "cut"}},
    "gru4rec-2018-parallel": PARALLEL
    | {"lr": 0.1, "momentum": 0.2, "loss": "xe", "loss_arguments": {"negatives": 16, "alpha": 0.5, "logq": 1.0}},
    "gru4rec-2018-parallel-bpr-max": PARALLEL
    | {"lr": 0.1, "loss": "bpr-max", "loss_arguments": {"negatives": 16, "penalty": 0.5, "activation": "elu-0.5"}},
}


def losses_of(name: str, arguments: dict, config: dict | None = None) -> list[float]:
    """Losses of twenty steps on sixty sessions of the same form.

    That of an auxiliary task, which takes a step before each of them, is added to it.
    """
    from sbr_core.batches import epoch_order
    from sbr_core.losses import FullSoftmax
    from sbr_core.models import build
    from sbr_core.optim import make_optimizers
    from sbr_core.sessions import Sessions
    from sbr_core.train import _update as update
    from sbr_core.train import train_step

    sessions = Sessions.from_lists([[(a + step) % 40 for step in STEPS] for a in range(60)], 40)
    windows = sessions.prefixes()
    torch.manual_seed(2024)
    model, loss = build(name, 40, dim=12, **arguments), FullSoftmax()
    model.prepare(sessions)
    if config:
        return configured(model, windows, config)
    optimizers = make_optimizers(model, lr=0.03, l2=0.0 if model.looked_up else 1e-5)
    tasks = [(task, task.make_optimizers()) for task in model.auxiliary_tasks()]
    batches, losses = epoch_order(windows, 16, seed=5, epoch=0, block=8).batches(windows), []
    for step, batch in zip(range(20), batches, strict=False):
        extra = [task.loss(0, step) for task, _ in tasks]
        for value, (_, own) in zip(extra, tasks, strict=True):
            update(value, own)
        losses.append(sum(value.item() for value in extra) + train_step(model, loss, optimizers, batch).item())
    return losses


def configured(model, windows, config: dict) -> list[float]:
    """Losses of the first twenty steps of a run with this configuration."""
    from sbr_core.config import TrainConfig
    from sbr_core.losses import least_rows, seek
    from sbr_core.run_state import Run
    from sbr_core.train import make_order, train_step

    settings = TrainConfig(seed=5, **config)
    run = Run(model, windows, settings, None, {}, 1e9)
    seek(run.loss, 0, 0)
    batches = islice(make_order(windows, settings, 0, least_rows(run.loss)).batches(windows), 20)
    return [train_step(model, run.loss, run.optimizers, batch).item() for batch in batches]


@pytest.mark.parametrize("case", CASES)
def test_the_first_twenty_losses_are_those_stored(case):
    stored = json.loads((FOLDER / f"{case}.json").read_text(encoding="utf-8"))
    name, arguments = CASES[case]
    assert (stored["model"], stored["arguments"]) == (name, arguments) and len(stored["losses"]) == 20
    assert stored.get("config") == CONFIGS.get(case)
    assert losses_of(name, arguments, CONFIGS.get(case)) == pytest.approx(stored["losses"], rel=1e-4)


def test_every_neural_model_has_its_losses_stored_and_no_file_is_left_over():
    from sbr_core.models import MODELS
    from sbr_core.models.base import SessionModel

    assert {name for name, _ in CASES.values()} == {
        name for name, cls in MODELS.items() if issubclass(cls, SessionModel)
    }
    assert {path.stem for path in FOLDER.glob("*.json")} == set(CASES)


if __name__ == "__main__":
    for case, (name, arguments) in CASES.items():
        record = {"model": name, "arguments": arguments}
        if case in CONFIGS:
            record["config"] = CONFIGS[case]
        record["losses"] = [round(x, 7) for x in losses_of(name, arguments, CONFIGS.get(case))]
        (FOLDER / f"{case}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"{case}: {record['losses'][0]:.4f} ... {record['losses'][-1]:.4f}")
