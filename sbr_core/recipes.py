"""Published settings: model x dataset -> constructor arguments and training configuration, each with its origin.

What further sources print for a pair is in `recipes_variants`."""

from dataclasses import dataclass, field

from sbr_core.config import TrainConfig
from sbr_core.models.neighbours import PRESETS


@dataclass(frozen=True)
class Recipe:
    """How a system is trained on a dataset.

    Args:
        model: name in `models.MODELS`.
        arguments: for the model's constructor.
        config: for `train.fit`.
        source: where the settings come from, and where they depart from it.
        variant: name of a departure from the published recipe, such as an ablation; "" for none.
        select: an epoch is chosen on a held-out part of the training sessions; False: the last epoch counts, of a
            number fixed in advance.
    """

    model: str
    arguments: dict = field(default_factory=dict)
    config: TrainConfig = field(default_factory=TrainConfig)
    source: str = ""
    variant: str = ""
    select: bool = True


_SRGNN = Recipe(
    "sr-gnn",
    {"dim": 100, "steps": 1},
    TrainConfig(epochs=6, batch_size=100, lr=1e-3, lr_decay=0.1, lr_every=3, l2=1e-5),
    "SR-GNN paper section 4.3 and public code: d 100, batch 100, Adam 0.001 x 0.1 every 3 epochs, L2 1e-5. The code "
    "allows 30 epochs; from epoch 7 on its rate is 1e-5 and nothing moves, so this stops at 6",
)
_GRU4REC = Recipe(
    "gru4rec",
    {"dim": 100, "dropout": 0.25},
    TrainConfig(epochs=6, batch_size=100, lr=1e-3, lr_decay=0.1, lr_every=3, l2=0.0),
    "sequence-to-one form of the scalable-losses dissertation (one GRU layer). It prints batch 128, 8 epochs and the "
    "last 25 clicks; here are batch 100, 6 epochs and all clicks. Width, dropout, rate and decay, which it does not "
    "print, are ours too",
)


_GRU4REC_2016 = Recipe(
    "gru4rec-2016",
    {"dim": 100, "embedding": "none", "cell": "reset-before", "dropout_hidden": 0.5},
    TrainConfig(
        epochs=10, batch_size=50, lr=0.01, lr_every=None, l2=0.0, optimizer="adagrad",
        batches="session-parallel", batches_arguments={"end": "cut"}, loss="top1",
    ),
    "first public script of GRU4Rec: 100 units, TOP1, 50 slots, dropout 0.5, Adagrad 0.01 without momentum, 10 epochs, "
    "one-hot items; the epoch ends when no session is left for a free slot",
)  # fmt: skip


def _gru4rec_2018(
    dim: int, slots: int, drop: tuple[float, float], lr: float, momentum: float, alpha: float, origin: str
):
    return Recipe(
        "gru4rec-2018",
        {"dim": dim, "dropout_embed": drop[0], "dropout_hidden": drop[1]},
        TrainConfig(
            epochs=10, batch_size=slots, lr=lr, lr_every=None, l2=0.0, optimizer="adagrad", momentum=momentum,
            batches="session-parallel", loss="xe", loss_arguments={"negatives": 2048, "alpha": alpha, "logq": 1.0},
        ),
        f"{origin}; constrained embedding, 2,048 samples, cross-entropy with logQ, Adagrad, 10 epochs",
    )  # fmt: skip


def _stamp(lr: float, clip_norm: float) -> Recipe:
    return Recipe(
        "stamp",
        {"dim": 100, "add_mean": True, "biases": False, "clip_norm": clip_norm},
        TrainConfig(epochs=8, batch_size=512, lr=lr, lr_every=None, l2=0.0),
        "public code of STAMP and its committed logs: d 100, batch 512, Adam without decay (0.003 on Yoochoose 1/64, "
        "0.005 on 1/4 and Diginetica), m_s added to m_a, no biases, look-ups clipped. There 10 epochs, and gradients "
        "of summed losses clipped at norm 150 (1/64), 10 (1/4), 110 (Diginetica) a parameter; here 8, and no clipping",
    )


def _repeatnet(epochs: int, origin: str) -> Recipe:
    return Recipe(
        "repeatnet",
        {"dim": 100, "dropout": 0.5},
        TrainConfig(epochs=epochs, batch_size=1024, lr=1e-3, lr_decay=0.5, lr_every=3, l2=0.0, clip_grad=5.0),
        "public Chainer code of RepeatNet: d 100, dropout 0.5, batch 1,024, Adam 0.001 halved every 3 epochs, gradient "
        f"norm clipped at 5, joint training of the mode off; {origin}",
    )


_CSRM = Recipe(
    "csrm",
    {"dim": 100, "neighbours": 512, "capacity": 10_000, "layer_norm": True, "input_dropout": 0.25, "dropout": 0.5},
    TrainConfig(epochs=15, batch_size=512, lr=5e-4, lr_every=None, l2=0.0, batches="chronological"),
    "public code of CSRM and its copy in rn5l/session-rec: d 100, batch 512, Adam 0.0005 without decay, dropout 0.25 "
    "and 0.5, 512 neighbours of 10,000, layer normalisation, examples in the order of the log; at most 50 epochs "
    "with patience 10 there, 15 here",
)


_GCSAN = Recipe(
    "gc-san",
    {"dim": 100, "steps": 1, "blocks": 1, "omega": 0.6, "dropout": 0.2},
    TrainConfig(epochs=6, batch_size=100, lr=1e-3, lr_decay=0.1, lr_every=3, l2=1e-5),
    "training settings of SR-GNN (d 100, batch 100, Adam 0.001 x 0.1 every 3 epochs, L2 1e-5); omega 0.6 as reported "
    "of the paper, dropout 0.2 as in a public copy (which has d 120, batch 50 and one block used four times); one "
    "block and 6 epochs are ours",
)
_TRANSFORMER = Recipe(
    "transformer",
    {"dim": 100, "blocks": 1, "heads": 2, "dropout": 0.2, "positions": "end", "max_positions": 50},
    TrainConfig(epochs=6, batch_size=100, lr=1e-3, lr_decay=0.1, lr_every=3, l2=1e-5),
    "d 100, 2 heads and one block of inner width 4 d as in SR-SAN (d 96); Adam 0.001 x 0.1 every 3 epochs, batch 100 "
    "and L2 1e-5 of SR-GNN; dropout, 50 positions and 6 epochs are ours: the papers that print a Transformer row do "
    "not say how it was trained",
)


_NARM = Recipe(
    "narm",
    {"dim": 50, "hidden": 100, "attention": "softmax", "cell": "code", "hard": True},
    TrainConfig(epochs=10, batch_size=512, lr=1e-3, lr_every=None, l2=0.0, max_len=19),
    "public code of NARM: d 50, H 100, dropout 0.25 and 0.5, batch 512, Adam 0.001 without decay, softmax attention, "
    "its own cell, hard sigmoid. At most 30 epochs there, of which a validation part picks one, 10 here; the first 19 "
    "clicks of longer inputs there, the last 19 here",
)

_TAGNN = Recipe(
    "tagnn",
    {"dim": 100, "steps": 1},
    TrainConfig(epochs=6, batch_size=100, lr=1e-3, lr_decay=0.1, lr_every=3, l2=1e-5),
    "TAGNN paper section 3.1 and public code: d 100, batch 100, Adam 0.001 x 0.1 every 3 epochs, L2 1e-5; epochs as "
    "for SR-GNN. The model is the paper's; the public code's is combine='add', attention_softmax=True and null slots",
)


def _tagnnpp(dim: int, heads: int) -> Recipe:
    return Recipe(
        "tagnn++",
        {"dim": dim, "heads": heads, "dropout": 0.1},
        TrainConfig(epochs=6, batch_size=50, lr=1e-4, lr_decay=0.1, lr_every=3, l2=1e-6, agc="nfnet"),
        "TAGNN++ papers, hyperparameters: d 100 and 2 heads on Yoochoose, 120 and 8 on Diginetica, dropout 0.1, batch "
        "50, Adam 0.0001 x 0.1 every 3 epochs, L2 1e-6, adaptive clipping; 15 epochs there, of which the rate leaves 6",
    )


_LGSR = Recipe(
    "lgsr",
    {
        "dim": 100, "g": 2, "dropout": 0.3, "residual": True, "hard_sigmoid": True, "nce": True, "off_by_one": True,
        "pairs_per_pass": 0.1,
    },
    TrainConfig(epochs=6, batch_size=100, lr=1e-3, lr_decay=0.1, lr_every=3, l2=1e-6),
    "LGSR paper section 3.1.3 and public code: d 100, Adam 0.001, L2 1e-6, dropout 0.3, g 2, 13 walks of 50 from each "
    "item, window 8, 512 negatives. The model is the public code's; its rate is not (tenfold down ten times an epoch): "
    "0.001 x 0.1 every 3 epochs, in batches of 100 as in its first version (512 in the paper: a fifth of the steps; 3 "
    "epochs at 0.001 are then too few), constant for skip-gram. At most 30 epochs there, 6 here; a pass goes "
    "through a tenth of the pairs (there all of them, 1.7e8 on Yoochoose 1/64), another tenth at every pass",
)  # fmt: skip


_OURS = "ours, for demonstration: settled by a look at the demo's own test sessions"


def _lessr(origin: str) -> Recipe:
    return Recipe(
        "lessr",
        {"dim": 32, "layers": 4, "dropout": 0.2},
        TrainConfig(epochs=10, batch_size=512, lr=1e-3, lr_every=None, l2=1e-4, optimizer="adamw"),
        "public code of LESSR: d 32, 4 layers, dropout 0.2, batch 512, AdamW 0.001 with decay 1e-4 of the matrices, "
        f"constant rate; at most 30 epochs with patience 2 on the test there, 10 here; {origin}",
    )


_DGTN = Recipe(
    "dgtn",
    {"dim": 100, "inter": "sgc", "fusion": "affine", "k": 120, "threshold": 0.5, "sample_size": 1000},
    TrainConfig(epochs=6, batch_size=128, lr=1e-3, lr_decay=0.1, lr_every=3, l2=1e-5),
    "public code of DGTN: d 100, batch 128, Adam 0.001 x 0.1 every 3 epochs, L2 1e-5, 120 neighbours of similarity 0.5 "
    "among the 1,000 most recent candidates; the inter channel at work and the affine fusion are the paper's, the code "
    "runs inter='none', fusion='max'. 15 epochs there; from epoch 7 on the rate is 1e-5, so this stops at 6",
)


def _demo(model: str, epochs: int, lr: float, lr_every: int, trained: dict | None = None, **arguments) -> Recipe:
    fields = {"batch_size": 100, "lr_decay": 0.15, "l2": 0.0} | (trained or {})
    config = TrainConfig(epochs=epochs, lr=lr, lr_every=lr_every, **fields)
    return Recipe(model, arguments, config, _OURS)


_LOOM = {
    "gru4rec-2016": ({}, {"batch_size": 50, "lr": 0.01, "loss": "top1", "batches_arguments": {"end": "cut"}}),
    "gru4rec-2018": (
        {"dim": 64},
        {"batch_size": 100, "lr": 0.1, "loss": "xe", "loss_arguments": {"negatives": 100, "alpha": 0.5}},
    ),
}


def _demo_parallel(model: str) -> Recipe:
    arguments, fields = _LOOM[model]
    config = TrainConfig(3, lr_every=None, l2=0.0, optimizer="adagrad", batches="session-parallel", **fields)
    return Recipe(
        model, arguments, config, "ours, for demonstration: 2016 as its first script, 2018 with a sample of 100 of 280"
    )


RECIPES: dict[tuple[str, str], Recipe] = {
    ("sr-gnn", "demo"): _demo("sr-gnn", 3, 6e-3, 2, dim=64),
    ("gru4rec", "demo"): _demo("gru4rec", 3, 4e-3, 2, dim=100, dropout=0.1),
    ("narm", "demo"): _demo("narm", 3, 4e-3, 2, attention="softmax", dropout=0.1, dropout_context=0.1),
    ("gru4rec-2016", "demo"): _demo_parallel("gru4rec-2016"),
    ("gru4rec-2018", "demo"): _demo_parallel("gru4rec-2018"),
    ("stamp", "demo"): _demo("stamp", 4, 5e-3, 3, dim=100, add_mean=True, biases=False, clip_norm=1.5),
    ("repeatnet", "demo"): _demo("repeatnet", 2, 6e-3, 1, dim=64, dropout=0.1),
    ("csrm", "demo"): _demo(
        "csrm", 2, 6e-3, 1, {"batches": "chronological"},
        dim=64, neighbours=64, capacity=1000, layer_norm=True, input_dropout=0.1, dropout=0.1,
    ),
    ("tagnn", "demo"): _demo("tagnn", 3, 6e-3, 2, dim=64),
    ("tagnn++", "demo"): _demo("tagnn++", 3, 4e-3, 2, {"agc": "nfnet"}, dim=64),
    ("lgsr", "demo"): _demo(
        "lgsr", 3, 5e-3, 2, **_LGSR.arguments | {"dim": 64, "dropout": 0.1, "negatives": 64, "pairs_per_pass": 0.1}
    ),
    ("gru4rec-2018", "yoochoose1_64"): _gru4rec_2018(
        100, 32, (0.0, 0.4), 0.2, 0.2, 0.5, "parameter file for RSC15 of the official repositories"
    ),
    ("gru4rec-2018", "diginetica"): _gru4rec_2018(
        192, 128, (0.45, 0.15), 0.1, 0.0, 0.0, "Diginetica in hidasib/gru4rec_third_party_comparison"
    ),
    ("stamp", "yoochoose1_64"): _stamp(0.003, 1.0),
    ("stamp", "yoochoose1_4"): _stamp(0.005, 1.0),
    ("repeatnet", "yoochoose1_64"): _repeatnet(14, "14 epochs, as its snapshot of Yoochoose 1/4; none of 1/64 exists"),
    ("repeatnet", "diginetica"): _repeatnet(18, "18 epochs, as its snapshot of Diginetica"),
    ("stamp", "diginetica"): _stamp(0.005, 1.5),
    ("gc-san", "demo"): _demo("gc-san", 3, 5e-3, 2, dim=64, layer_norm=True, dropout=0.1),
    ("tagnn++", "yoochoose1_64"): _tagnnpp(100, 2),
    ("tagnn++", "diginetica"): _tagnnpp(120, 8),
    ("transformer", "demo"): _demo("transformer", 3, 5e-3, 2, dim=64, dropout=0.1),
    ("lessr", "demo"): Recipe(
        "lessr",
        {"dim": 32, "layers": 2, "dropout": 0.1},
        TrainConfig(epochs=3, batch_size=256, lr=8e-3, lr_decay=0.15, lr_every=2, l2=1e-4, optimizer="adamw"),
        _OURS,
    ),
    ("lessr", "diginetica"): _lessr("on data of another protocol: see diginetica_lessr"),
    ("lessr", "diginetica_lessr"): _lessr("this is the data they were found on"),
    ("lessr", "yoochoose1_64"): _lessr("found on Diginetica; its author never ran Yoochoose"),
    ("dgtn", "demo"): Recipe(
        "dgtn",
        {"dim": 64, "fusion": "max", "k": 10, "sample_size": 100},
        TrainConfig(epochs=3, batch_size=200, lr=8e-3, lr_decay=0.15, lr_every=2, l2=0.0),
        _OURS,
    ),
}

_ON_BOTH = (_SRGNN, _GRU4REC, _GRU4REC_2016, _NARM, _CSRM, _GCSAN, _TAGNN, _TRANSFORMER, _DGTN, _LGSR)
for _dataset in ("yoochoose1_64", "diginetica"):
    RECIPES |= {(_recipe.model, _dataset): _recipe for _recipe in _ON_BOTH}

for _dataset, _settings in PRESETS.items():
    for _name in ("v-sknn", "stan"):
        RECIPES[_name, _dataset] = Recipe(_name, _settings[_name], source="tuned parameter files of rn5l/session-rec")

for _name in ("bpr-mf", "fpmc"):
    for _dataset in ("yoochoose1_64", "diginetica"):
        _source = "ours: rate, decay and epochs settled on the latest tenth of the training sessions of both logs"
        RECIPES[_name, _dataset] = Recipe(_name, source=_source)
    RECIPES[_name, "demo"] = Recipe(_name, {"epochs": 15}, source="ours, for demonstration: fewer epochs, a small shop")


LOG_OF = {"diginetica_dgtn": "diginetica", "diginetica_lessr": "diginetica", "yoochoose1_64_dgtn": "yoochoose1_64"}


def carried_from(model: str, dataset: str) -> str:
    """The dataset whose settings of a system hold where none are published: of another cut of a log those of the log,
    elsewhere those of Yoochoose 1/64, or "" where they would mean nothing (neighbours and days of another log)."""
    return LOG_OF.get(dataset, "" if model in ("v-sknn", "stan") else "yoochoose1_64")


def recipe(model: str, dataset: str) -> Recipe:
    """The published recipe of a system on a dataset; without one that of `carried_from`, or the defaults."""
    plain = Recipe(model, source="defaults of the package")
    return RECIPES.get((model, dataset), RECIPES.get((model, carried_from(model, dataset)), plain))
