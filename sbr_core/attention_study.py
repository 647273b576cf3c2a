"""What a trained LGSR looks at: its attention in a few sessions, and over all the shares that pictures suggest.

Shapes: S sessions, B of a batch, L clicks that are read, N the items of a softmax.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sbr_core import checkpoints, datasets
from sbr_core.batches import Batch, gather, length_order
from sbr_core.blend import trained
from sbr_core.evaluate import bootstrap
from sbr_core.models.lgsr import LGSR
from sbr_core.sessions import Windows

DRAWN, CASES = 15, 10  # clicks of a session that is drawn, and sessions
SHORTEST = 6  # clicks that a row of weights has to choose from, to count
END = 3  # clicks are the end of a session
FEW = (0.25, 0.5, 0.75)  # of the clicks that a row may look at
DIGITS = 5


def inputs(windows: Windows) -> Windows:
    """The longest input of every session, in the order of the log."""
    session = windows.session.long()
    order = (session * (int(windows.lengths.max()) + 1) + windows.lengths).argsort()
    last = torch.ones(len(order), dtype=torch.bool, device=order.device)
    last[:-1] = session[order].diff() != 0
    return windows[order[last]]


@torch.no_grad()
def look(model: LGSR, batch: Batch) -> tuple[Float[Tensor, "B L L"], Float[Tensor, "B L"]]:
    """Self-attention, a row for each click that looks, and the weights of the pooling, of a model in `eval` mode.

    Args:
        batch: no session has more clicks than the model reads.
    """
    part, x = model.recommender, model.embed(batch.items)
    placed = x + part.positions(batch.lengths, x.shape[1])
    maps = part.block.attention.weights(placed, batch.mask, causal=True)[:, 0]  # it has one head
    return maps, part.weights(part.states(x, batch), batch)


def soft_count(weights: Float[Tensor, "*rows N"]) -> Float[Tensor, "*rows"]:
    """The number of equal weights that would have the same entropy as each row."""
    return torch.exp(-torch.xlogy(weights, weights).sum(-1))


def looks(model: LGSR, windows: Windows, size: int = 256) -> dict[str, Tensor]:
    """Of every session: what its rows of weights come to.

    Returns:
        clicks; cases (rows of self-attention that may look at `SHORTEST` clicks or more); few (S, 3), how many of them
        look softly at less than each of the shares `FEW` of these clicks; self, the sum of the shares over the cases;
        pooling, that share of its weights; ago, the clicks after the heaviest; end, the weight of the last `END`.
    """
    parts = []
    for batch in length_order(windows, size).batches(windows):
        maps, pooled = look(model, batch)
        place = torch.arange(maps.shape[1], device=maps.device)
        cases = batch.mask & (place >= SHORTEST - 1)
        share = soft_count(maps) / (place + 1)
        few = torch.stack([((share < bound) & cases).sum(1) for bound in FEW], dim=1)
        after = batch.lengths[:, None] - 1 - place
        found = {"clicks": batch.lengths, "cases": cases.sum(1), "few": few, "self": (share * cases).sum(1)}
        found |= {"pooling": soft_count(pooled) / batch.lengths, "ago": batch.lengths - 1 - pooled.argmax(1)}
        parts.append(found | {"end": (pooled * (after < END)).sum(1)})
    return {name: torch.cat([part[name] for part in parts]).double().cpu() for name in parts[0]}


def mean(total: Float[Tensor, "S"], count: Float[Tensor, "S"], resamples: int = 1000, seed: int = 0) -> list[float]:
    """Sum of totals over sum of counts in percent, with its 95 % interval: a bootstrap over sessions."""
    return [100 * (total.sum() / count.sum()).item(), *bootstrap(total, count, resamples, seed)]


def shares(model: LGSR, windows: Windows) -> dict:
    """Over all inputs of `SHORTEST` clicks or more, in percent with 95 % intervals where there are three numbers.

    Returns:
        sessions; clicks (mean); cases; few (share of the cases whose row looks softly at less than each of `FEW` of
        its clicks); self and pooling (of the clicks that a row may look at, those that it looks at softly, on average);
        end (sessions whose heaviest weight of the pooling lies among the last `END` clicks), chance (the same of a
        click drawn at random), beyond chance (their difference); end weight (of these clicks in the pooling);
        heaviest (sessions by the number of clicks after the heaviest).
    """
    windows = inputs(windows).last(model.max_positions)
    found = looks(model, windows[windows.lengths >= SHORTEST])
    clicks, one = found["clicks"], torch.ones_like(found["clicks"])
    at_end, chance = (found["ago"] < END).double(), END / clicks
    rows = {"sessions": len(clicks), "clicks": clicks.mean().item(), "cases": int(found["cases"].sum())}
    rows["few"] = {str(bound): mean(few, found["cases"]) for bound, few in zip(FEW, found["few"].T, strict=True)}
    rows |= {"self": mean(found["self"], found["cases"]), "pooling": mean(found["pooling"], one)}
    rows |= {"end": mean(at_end, one), "chance": 100 * chance.mean().item()}
    rows["beyond chance"] = mean(at_end - chance, one)
    ago = torch.bincount(found["ago"].long(), minlength=SHORTEST)
    return rows | {"end weight": mean(found["end"], one), "heaviest": (100 * ago / len(clicks)).tolist()}


def cases(model: LGSR, windows: Windows) -> list[dict]:
    """The first `CASES` sessions with an input of `DRAWN` clicks, or those nearest to it.

    Returns:
        Of each: items (numbered in the order of their first click), self (row by row what a click gives itself and
        those before it) and pooling.
    """
    windows = inputs(windows).last(model.max_positions)
    nearest = (windows.lengths.long() - DRAWN).abs().argsort(stable=True)[:CASES]
    batch = gather(windows, nearest)
    rows = zip(batch.items.tolist(), batch.lengths.tolist(), *look(model, batch), strict=True)
    return [_case(items[:n], maps[:n, :n].cpu(), pooled[:n].cpu()) for items, n, maps, pooled in rows]


def _case(items: list[int], maps: Tensor, pooled: Tensor) -> dict:
    number = {item: place for place, item in enumerate(dict.fromkeys(items))}
    rows = [[round(w, DIGITS) for w in row[: place + 1]] for place, row in enumerate(maps.tolist())]
    return {"items": [number[i] for i in items], "self": rows, "pooling": [round(w, DIGITS) for w in pooled.tolist()]}


def attention_study(work: Path, dataset: str) -> dict:
    """The attention of LGSR at the end of its final run, as ``results/studies/attention.json`` holds it.

    Args:
        work: folder of the checkpoints of `replicate`.

    Raises:
        ValueError: if LGSR has no run there, or one of other data.
    """
    data, folder = datasets.load(dataset), work / f"lgsr--{dataset}--seed0-final"
    model, test = trained("lgsr", data, data.train, folder), data.test_windows()
    info = checkpoints.read(folder / "state.safetensors")[1]
    epochs, last = len(info["epochs"]), info["epochs"][-1]["test"]
    run = info["run"] | {"epochs": epochs, "test": {name: last[name] for name in ("HR@20", "MRR@20")}}
    found = {"schema": 1, "study": "attention", "dataset": dataset, "fingerprint": data.fingerprint, "run": run}
    found |= {"shortest": SHORTEST, "end": END}
    return found | {"shares": shares(model, test), "cases": cases(model, test)}
