"""Every system of the book under the name that the papers give it, in lower case."""

import inspect
from collections.abc import Callable, Mapping

from torch import nn

from sbr_core.config import fits
from sbr_core.models.base import CountingModel, SessionModel
from sbr_core.models.bprmf import BPRMF
from sbr_core.models.counting import ItemKNN, Markov, Popularity, SessionPopularity
from sbr_core.models.csrm import CSRM
from sbr_core.models.dgtn import DGTN
from sbr_core.models.fpmc import FPMC
from sbr_core.models.gcsan import GCSAN
from sbr_core.models.gru4rec import GRU4Rec
from sbr_core.models.gru4rec_parallel import GRU4Rec2016, GRU4Rec2018
from sbr_core.models.lessr import LESSR
from sbr_core.models.lgsr import LGSR
from sbr_core.models.narm import NARM
from sbr_core.models.neighbours import STAN, VSKNN
from sbr_core.models.repeatnet import RepeatNet
from sbr_core.models.srgnn import SRGNN
from sbr_core.models.stamp import STAMP
from sbr_core.models.tagnn import TAGNN
from sbr_core.models.tagnnpp import TAGNNpp
from sbr_core.models.transformer import Transformer

MODELS: dict[str, type[nn.Module]] = {
    "pop": Popularity,
    "s-pop": SessionPopularity,
    "markov": Markov,
    "item-knn": ItemKNN,
    "v-sknn": VSKNN,
    "stan": STAN,
    "bpr-mf": BPRMF,
    "fpmc": FPMC,
    "gru4rec": GRU4Rec,
    "gru4rec-2016": GRU4Rec2016,
    "gru4rec-2018": GRU4Rec2018,
    "narm": NARM,
    "stamp": STAMP,
    "repeatnet": RepeatNet,
    "csrm": CSRM,
    "sr-gnn": SRGNN,
    "gc-san": GCSAN,
    "tagnn": TAGNN,
    "lessr": LESSR,
    "dgtn": DGTN,
    "transformer": Transformer,
    "tagnn++": TAGNNpp,
    "lgsr": LGSR,
}


def build(name: str, num_items: int, /, **arguments) -> nn.Module:
    """The model called `name` for a catalogue of `num_items`, with its constructor's `arguments`.

    Every neural model also takes ``similarity``, ``normalise`` and ``scale``, see `base.SessionModel.compare_by`.

    Raises:
        ValueError: if there is no such model, or it has no such argument, or the argument is of another type.
    """
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}; the models are {', '.join(MODELS)}")
    known = _arguments(MODELS[name])
    comparison = _arguments(SessionModel.compare_by) if issubclass(MODELS[name], SessionModel) else {}
    known |= comparison
    for key, value in arguments.items():
        if key not in known:
            raise ValueError(f"{name} has no argument {key!r}; it has {', '.join(known) or 'none'}")
        if type(value) is int and isinstance(1.0, known[key]):
            arguments[key] = float(value)
        elif not fits(value, known[key]):
            raise ValueError(f"{name}: {key} is {getattr(known[key], '__name__', known[key])}, got {value!r}")
    model = MODELS[name](num_items, **{key: value for key, value in arguments.items() if key not in comparison})
    if comparison:
        model.compare_by(**{key: value for key, value in arguments.items() if key in comparison})
    return model


def seeded(name: str, arguments: Mapping, seed: int) -> dict:
    """The arguments; of a system that draws its own random numbers while it counts with a ``seed``, by default this.

    Neural models draw from torch's generator. The ``seed`` of LGSR is that of its walks alone.
    """
    draws = issubclass(MODELS[name], CountingModel) and "seed" in _arguments(MODELS[name])
    return ({"seed": seed} if draws else {}) | dict(arguments)


def bound(name: str, arguments: Mapping) -> dict:
    """All arguments that `build` gives the model called `name`: these, and the defaults of the others."""
    functions = [MODELS[name]] + ([SessionModel.compare_by] if issubclass(MODELS[name], SessionModel) else [])
    taken = [item for function in functions for item in inspect.signature(function).parameters.items()]
    default = {key: parameter.default for key, parameter in taken if key not in ("self", "num_items")}
    return default | dict(arguments)


def _arguments(function: Callable) -> dict:
    """Name and annotation of what a constructor or method takes from the user."""
    taken = inspect.signature(function).parameters.items()
    return {key: parameter.annotation for key, parameter in taken if key not in ("self", "num_items")}


__all__ = [
    "MODELS", "CountingModel", "SessionModel", "bound", "build", "seeded",
    *sorted(cls.__name__ for cls in MODELS.values()),
]  # fmt: skip
