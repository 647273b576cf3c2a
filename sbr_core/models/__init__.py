"""Every system of the book under the name that the papers give it, in lower case."""

import inspect

from torch import nn

from sbr_core.models.base import CountingModel, SessionModel
from sbr_core.models.counting import ItemKNN, Markov, Popularity, SessionPopularity
from sbr_core.models.gru4rec import GRU4Rec
from sbr_core.models.neighbours import STAN, VSKNN
from sbr_core.models.srgnn import SRGNN
from sbr_core.models.stamp import STAMP

MODELS: dict[str, type[nn.Module]] = {
    "pop": Popularity,
    "s-pop": SessionPopularity,
    "markov": Markov,
    "item-knn": ItemKNN,
    "v-sknn": VSKNN,
    "stan": STAN,
    "gru4rec": GRU4Rec,
    "stamp": STAMP,
    "sr-gnn": SRGNN,
}


def build(name: str, num_items: int, /, **arguments) -> nn.Module:
    """The model called `name` for a catalogue of `num_items`, with its constructor's `arguments`.

    Raises:
        ValueError: if there is no such model, or it has no such argument, or the argument is of another type.
    """
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}; the models are {', '.join(MODELS)}")
    known = {key: p.annotation for key, p in inspect.signature(MODELS[name]).parameters.items() if key != "num_items"}
    for key, value in arguments.items():
        if key not in known:
            raise ValueError(f"{name} has no argument {key!r}; it has {', '.join(known) or 'none'}")
        if type(value) is int and isinstance(1.0, known[key]):
            arguments[key] = float(value)
        elif not isinstance(value, known[key]):
            raise ValueError(f"{name}: {key} is {getattr(known[key], '__name__', known[key])}, got {value!r}")
    return MODELS[name](num_items, **arguments)


__all__ = ["MODELS", "CountingModel", "SessionModel", "build", *sorted(cls.__name__ for cls in MODELS.values())]
