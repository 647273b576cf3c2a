"""Published settings of which a pair of model and dataset has more than one: those that `recipes` does not hold.

`sbr replicate --models gc-san--copy --datasets diginetica` runs the variant "copy" of GC-SAN.
"""

import dataclasses

from sbr_core.models.neighbours import PRESETS
from sbr_core.recipes import Recipe, carried_from, recipe

VARIANTS: dict[tuple[str, str], dict[str, Recipe]] = {}


def _add(model: str, dataset: str, variant: str, source: str, arguments: dict | None = None, **config) -> None:
    """A variant of the pair's recipe with other arguments and other fields of its configuration."""
    plain = recipe(model, dataset)
    varied = dataclasses.replace(
        plain,
        arguments=plain.arguments | (arguments or {}),
        config=dataclasses.replace(plain.config, **config),
        source=source,
        variant=variant,
    )
    VARIANTS.setdefault((model, dataset), {})[variant] = varied


def _gru4rec(
    dataset: str, variant: str, dim: int, slots: int, drop: tuple[float, float], rates: tuple, origin: str, **loss
) -> None:
    """A row of the authors' hyper-parameters: `rates` are those of learning, of momentum and of the samples (alpha)."""
    lr, momentum, alpha = rates
    name = "bpr-max" if loss else "xe"
    _add(
        "gru4rec-2018", dataset, variant,
        f"{origin}; constrained embedding, 2,048 samples, {name}, Adagrad, 10 epochs",
        {"dim": dim, "dropout_embed": drop[0], "dropout_hidden": drop[1]},
        batch_size=slots, lr=lr, momentum=momentum, loss=name,
        loss_arguments={"negatives": 2048, "alpha": alpha} | (loss or {"logq": 1.0}),
    )  # fmt: skip


_THIRD = "{} in hidasib/gru4rec_third_party_comparison, found on a preparation of its own (repeated clicks removed)"
_gru4rec(
    "yoochoose1_64", "readme", 100, 32, (0.1, 0.0), (0.1, 0.0, 0.75),
    "table in the README of the official repositories for RSC15, which contradicts their parameter file (the recipe)",
)  # fmt: skip
_gru4rec("yoochoose1_64", "xe-480", 480, 48, (0.0, 0.2), (0.07, 0.0, 0.2), _THIRD.format("Yoochoose"))
_gru4rec(
    "yoochoose1_64", "bpr-max", 448, 48, (0.25, 0.0), (0.075, 0.1, 0.2), _THIRD.format("Yoochoose"),
    penalty=0.5, activation="linear",
)  # fmt: skip
_gru4rec(
    "diginetica", "bpr-max", 512, 128, (0.5, 0.3), (0.05, 0.15, 0.3), _THIRD.format("Diginetica"),
    penalty=0.9, activation="elu-1",
)  # fmt: skip

_TUNED_2016 = "tuned values of the GRU4Rec paper of 2016 for RSC15, by memory: 100 units, {}"
_add(
    "gru4rec-2016", "yoochoose1_64", "bpr",
    _TUNED_2016.format("BPR, 50 slots, dropout 0.2, Adagrad 0.05 with momentum 0.2"),
    {"dropout_hidden": 0.2}, loss="bpr", lr=0.05, momentum=0.2,
)  # fmt: skip
_add(
    "gru4rec-2016", "yoochoose1_64", "ce",
    _TUNED_2016.format("cross-entropy among the targets of the step, 500 slots, no dropout, Adagrad 0.01"),
    {"dropout_hidden": 0.0}, loss="xe", loss_arguments={"negatives": 0, "logq": 0.0}, batch_size=500,
)  # fmt: skip

_BUDGET = {  # passes nearest to two million cases
    "bpr-mf": {"yoochoose1_64": 4, "diginetica": 2},
    "fpmc": {"yoochoose1_64": 5, "diginetica": 3},
}
for _dataset in ("yoochoose1_64", "diginetica"):
    _add(
        "bpr-mf", _dataset, "code",
        "baselines of hidasib/GRU4Rec: 100 factors, uniform in 0.05, 10 passes at rate 0.01, no decay, negatives among "
        "the first click events of the log",
        {"epochs": 10, "lr": 0.01, "l2": 0.0, "negatives": "code"},
    )  # fmt: skip
    for _name, _passes in _BUDGET.items():
        _add(
            _name, _dataset, "session-rec",
            "rn5l/session-rec: 100 factors, rate 0.05, decay 0.0025 (for negatives a tenth there), two million cases "
            "(here the nearest number of whole passes), for FPMC the mean of the session's factors for the unknown "
            "user's. Begins from N(0, 1) there, from 0.05 here; negatives by rank there, uniform here; no item biases "
            "here",
            {"epochs": _passes[_dataset], "lr": 0.05, "l2": 0.0025} | ({"user": "mean"} if _name == "fpmc" else {}),
        )  # fmt: skip
    _add(
        "gc-san", _dataset, "copy",
        "public copy johnny12150/GC-SAN (its authors published none): d 120, batch 50, one block used four times, "
        "omega 0.52, dropout 0.2, Adam 0.001 x 0.1 every 3 epochs, L2 1e-5; padding attends and "
        "dropout lies between a block's two maps there, here it is masked and after the second",
        {"dim": 120, "blocks": 4, "share_blocks": True, "omega": 0.52, "dropout": 0.2}, batch_size=50,
    )  # fmt: skip
    _add(
        "gc-san", _dataset, "issue-1287",
        "what a user of RecBole (issue 1287) gives as the paper's settings: d 120, batch 50, 5 blocks, omega 0.6; all "
        "else as in the recipe",
        {"dim": 120, "blocks": 5, "omega": 0.6}, batch_size=50,
    )  # fmt: skip
    _add(
        "transformer", _dataset, "sr-san",
        "public code of SR-SAN: d 96, 2 heads, dropout 0.1, 12 epochs, neither positions nor a causal mask; it attends "
        "over the distinct items by number and a padding node and normalises after each half, here over the clicks, "
        "padding masked, and before",
        {"dim": 96, "heads": 2, "dropout": 0.1, "positions": "none", "causal": False}, epochs=12,
    )  # fmt: skip
    _add(
        "stamp", _dataset, "paper",
        "STAMP paper, by memory: m_a without m_s, biases, rate 0.005 without decay, batch 512, 30 epochs; all else as "
        "in the recipe",
        {"add_mean": False, "biases": True}, lr=0.005, epochs=30,
    )  # fmt: skip
    _add(
        "lgsr", _dataset, "batch-512",
        "LGSR paper section 3.1.3: batch 512, all else as in the recipe (100, as the code's first version)",
        batch_size=512,
    )  # fmt: skip
    _add(
        "lgsr", _dataset, "first-version",
        "first public version of LGSR's code: batch 100, dropout 0.5, no L2, rate x 0.1 every 3 epochs; all else as in "
        "the recipe",
        {"dropout": 0.5}, l2=0.0,
    )  # fmt: skip
    VARIANTS["stan", _dataset] = {
        "hr": Recipe(
            "stan", PRESETS[_dataset]["stan-hr"], variant="hr",
            source="tuned parameter files of rn5l/session-rec, those for the hit rate (the recipe: for MRR@20)",
        )
    }  # fmt: skip

_add(
    "narm", "yoochoose1_64", "session-rec",
    "tuned parameter file of rn5l/session-rec: rate 0.005, 20 epochs; all else as in the recipe",
    lr=0.005, epochs=20,
)  # fmt: skip
_add(
    "narm", "diginetica", "session-rec",
    "tuned parameter file of rn5l/session-rec: rate 0.0007, d 50; all else as in the recipe",
    lr=0.0007,
)  # fmt: skip
for _dataset in ("yoochoose1_4", "diginetica"):
    _add(
        "stamp", _dataset, "config-file",
        "committed configuration of STAMP's public code: rate 0.003; its logs of this dataset (the recipe) ran 0.005",
        lr=0.003,
    )  # fmt: skip

# Lengths to which the public loaders pad, in training and in the test, by the data that the package has.
_PADS = {
    "yoochoose1_64": (145, 73), "yoochoose1_64_dgtn": (145, 67), "diginetica": (69, 40), "diginetica_dgtn": (69, 55)
}  # fmt: skip
for _dataset, (_train, _test) in _PADS.items():
    _null = {"null_slots": "official", "pad_to_train": _train, "pad_to_test": _test}
    _add(
        "tagnn", _dataset, "code",
        "public code of TAGNN: the target vector is added, the attention goes through a softmax, both softmaxes "
        "count the padding; trained as in the recipe",
        {"combine": "add", "attention_softmax": True} | _null,
    )  # fmt: skip
    _yoochoose = _dataset.startswith("yoochoose")
    _add(
        "tagnn++", _dataset, "code",
        "public code of TAGNN++ (SBR) and its defaults: d 120 and batch 75 on Yoochoose, 100 and 50 on Diginetica, 2 "
        "heads, dropout 0.1, attention over the nodes by item number, no positions, padding counted, Adam 0.001 x 0.1 "
        "every 3 epochs stepped before the first, L2 1e-5, no clipping. 30 epochs with patience 10 on examples drawn "
        "from the training set there, 6 here",
        {"dim": 120 if _yoochoose else 100, "heads": 2, "form": "code"} | _null,
        lr=1e-3, batch_size=75 if _yoochoose else 50, l2=1e-5, schedule_offset=1, agc="off",
    )  # fmt: skip


def variants_of(model: str, dataset: str) -> dict[str, Recipe]:
    """The published variants of a system on a dataset, name -> recipe, with those of `recipes.carried_from`."""
    return VARIANTS.get((model, carried_from(model, dataset)), {}) | VARIANTS.get((model, dataset), {})
