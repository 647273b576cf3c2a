"""Several trained systems as one: the weighted mean of their probabilities, with weights picked on held-out sessions.

Shapes: B examples of a batch, E examples, V items, M systems.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sbr_core import checkpoints, datasets
from sbr_core.batches import Batch, gather
from sbr_core.evaluate import Evaluation, evaluate, ranks_from_scores
from sbr_core.models import MODELS, build
from sbr_core.models.base import CountingModel
from sbr_core.replicate import HELD_OUT, new_model
from sbr_core.rerun import jobs_for
from sbr_core.sessions import Sessions, Windows


def probabilities(model: nn.Module, query: object) -> Float[Tensor, "B V"]:
    """What a system says of the next item: the softmax of its scores, or for one that counts their share of the sum."""
    scores = model.score(query)
    if isinstance(model, CountingModel):
        return scores.clamp(min=0) / scores.clamp(min=0).sum(1, keepdim=True).clamp(min=1e-12)
    return scores.softmax(1)


class Blend(nn.Module):
    """A system whose scores are the weighted mean of the probabilities of others.

    Args:
        members: trained or fitted systems of one catalogue.
        weights: one for each, not negative; they are divided by their sum.

    Raises:
        ValueError: if there is no member, the catalogues differ, or the weights are not such.
    """

    def __init__(self, members: Sequence[nn.Module], weights: Sequence[float | int]):
        super().__init__()
        if not members or len({member.num_items for member in members}) > 1:
            raise ValueError("a blend wants at least one member, and all of them over the same catalogue")
        if len(weights) != len(members) or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"a blend of {len(members)} wants as many weights >= 0, not all 0; got {list(weights)}")
        self.members, self.num_items = nn.ModuleList(members), members[0].num_items
        self.weights = [weight / sum(weights) for weight in weights]

    def encode(self, batch: Batch) -> list:
        """The query of every member that has a weight."""
        return [member.encode(batch) for member, _ in self._heavy()]

    def score(self, query: list) -> Float[Tensor, "B V"]:
        """The mean probabilities."""
        parts = zip(self._heavy(), query, strict=True)
        return sum(weight * probabilities(member, each) for (member, weight), each in parts)

    def _heavy(self) -> list[tuple[nn.Module, float]]:
        return [pair for pair in zip(self.members, self.weights, strict=True) if pair[1]]


def pick_weights(
    said: Sequence[Float[Tensor, "E V"]], target: Int[Tensor, "E"], rounds: int = 20
) -> tuple[list[int], list[float]]:
    """Greedy selection with replacement: in every round the member joins that helps the mean most, by MRR@20.

    Args:
        said: probabilities of the M members for the same examples.

    Returns:
        How often each member was taken in the best of the rounds, and MRR@20 in percent after every round.

    Source: Caruana et al., Ensemble Selection from Libraries of Models, ICML 2004.
    """
    total, taken, counts, reached = torch.zeros_like(said[0]), [], [], []
    for _ in range(rounds):
        values = [_mrr(total + member, target) for member in said]
        best = max(range(len(said)), key=values.__getitem__)
        total += said[best]
        taken.append(best)
        counts.append([taken.count(number) for number in range(len(said))])
        reached.append(values[best])
    return counts[max(range(rounds), key=reached.__getitem__)], reached


def _mrr(scores: Float[Tensor, "E V"], target: Int[Tensor, "E"]) -> float:
    ranks = torch.cat([ranks_from_scores(*part) for part in zip(scores.split(512), target.split(512), strict=True)])
    return 100 * torch.where(ranks <= 20, 1 / ranks, 0.0).mean().item()


def trained(name: str, dataset: datasets.Dataset, train: Sessions, folder: Path) -> nn.Module:
    """A system as it stands at the end of a run, or fitted to `train` if it counts.

    Args:
        name: of the system, or system--variant.
        folder: of the run, with its checkpoint.

    Raises:
        ValueError: if the run has no checkpoint or is of other data.
    """
    system = name.partition("--")[0]
    if issubclass(MODELS[system], CountingModel):
        (job,) = jobs_for([name], dataset.name)
        return new_model(job.recipe, dataset.num_items, job.seed).fit(train)
    if not (folder / "state.safetensors").exists():
        raise ValueError(
            f"{folder} holds no run; `sbr replicate --models {name} --datasets {dataset.name} --work {folder.parent}` "
            "makes it, if its record is not there already"
        )
    tensors, info = checkpoints.read(folder / "state.safetensors")
    if info["run"]["dataset"] != dataset.fingerprint:
        raise ValueError(f"{folder} is a run on other data than {dataset.name}")
    model = build(system, dataset.num_items, **info["run"]["arguments"])
    model.prepare(train)
    model.restore({key[6:]: tensor for key, tensor in tensors.items() if key.startswith("model.")})
    return model.eval()


@torch.no_grad()
def said_of(model: nn.Module, windows: Windows, chunk: int = 256) -> Float[Tensor, "E V"]:
    """Probabilities of all items for these examples."""
    places = torch.arange(len(windows)).split(chunk)
    return torch.cat([probabilities(model, model.encode(gather(windows, place))) for place in places])


def blend_study(work: Path, names: Sequence[str], dataset: str, examples: int = 4_000, rounds: int = 20) -> dict:
    """The best that the recorded systems reach together: weights picked on the latest tenth of the training sessions
    with the models of the select runs, the test seen once, with those of the final runs.

    Args:
        work: folder of the checkpoints of `replicate`; a system that counts has none.
        examples: of the held-out sessions, on which weights are picked.
    """
    data = datasets.load(dataset)
    early, late = data.train.split_latest(HELD_OUT)
    held = late.prefixes()
    some = held[torch.linspace(0, len(held) - 1, min(examples, len(held))).long()]

    def members(part: str, train: Sessions) -> list[nn.Module]:
        return [trained(name, data, train, work / f"{name}--{dataset}--seed0-{part}") for name in names]

    said = [said_of(member, some) for member in members("select", early)]
    alone = [_mrr(each, some.labels.long()) for each in said]
    counts, reached = pick_weights(said, some.labels.long(), rounds)
    del said
    blend = Blend(members("final", data.train), counts)
    found: Evaluation = evaluate(blend, data.test_windows())
    intervals = {f"{metric} interval": list(found.interval(metric)) for metric in ("HR@20", "MRR@20")}
    row = {"dataset": dataset, "fingerprint": data.fingerprint, "members": list(names), "counts": counts}
    row |= {"validation": {"alone": alone, "rounds": reached, "examples": len(some)}}
    return row | {"test": found.metrics | intervals | {"examples": len(found.ranks)}}
