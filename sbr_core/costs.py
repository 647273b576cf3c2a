"""What a run costs: from records of runs like it, else from the benchmark of a training step; on a graphics card
without a record of its own, from an assumption about the card.

The assumption: a step takes its host as long as the same system's step on the demo shop, where there is next to
nothing to multiply, and the card does the work of a CPU at `GPU_FLOPS` where the CPU did it at `CPU_FLOPS`. Nothing of
it has been measured on a card: such a time is called "estimated". Processes that share a card share out the host's
part, not the card's.
"""

import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median

import pandas as pd

from sbr_core import records
from sbr_core.models import MODELS
from sbr_core.models.base import CountingModel
from sbr_core.recipes import Recipe, recipe
from sbr_core.sources import EXPECTED

PASSES = 1.9  # of both runs: the select run sees nine tenths of the sessions, the final run all of them
HELD_OUT = 0.1  # share of the training examples that the select run ranks after every epoch
COUNTING = 60.0  # seconds of a system that counts
CPU_FLOPS = 2e11  # operations a second that two cores reach in the products of a step
GPU_FLOPS = 1e13  # that a card is assumed to reach in products as small as these, a sixth of an H200's peak in fp32
LAUNCH = 0.01  # seconds of a step on its host where the demo shop has no benchmark of it
START = 15.0  # seconds from the start of a run to its first step: data, graphs, the first use of every kernel
BENCHED = "yoochoose1_64"  # whose benchmark stands for a dataset that has none


class Costs:
    """Seconds of runs on one kind of device.

    Args:
        folder: of the records, with the benchmark ``studies/speed.json``; what cannot be read there does not count.
        device: "cpu", "cuda", ...
    """

    def __init__(self, folder: Path, device: str = "cpu"):
        self.card = not device.startswith("cpu")
        known = list(_readable(folder))
        self.on_cpu = [record for record in known if record["device"].startswith("CPU")]
        self.on_card = [record for record in known if not record["device"].startswith("CPU")]
        self.bench = benchmark(folder)

    def seconds(self, job) -> tuple[float | None, str]:
        """What a run takes with its evaluations, and how that is known.

        "measured": a record of the same run, of another seed perhaps, has as many epochs in the same precision.
        "estimated": scaled from a record that has not, or is of another dataset or variant with the same loss; or from
        the benchmark; or, on a card, from the assumption above. None and "unknown" without any of these.
        """
        found = self._recorded(job, self.on_card if self.card else self.on_cpu)
        if found[0] is not None:
            return found
        took = self._assumed(job) if self.card else self._benched(job)
        return took, "unknown" if took is None else "estimated"

    def undivided(self, job) -> float:
        """Of these seconds, those that several processes on one device cannot share out: the work of a card, which is
        all but its start and the launches of its steps. 0 on a CPU, and where the time or the launches are unknown."""
        took, host = (self.seconds(job)[0], self._host(job)) if self.card else (None, None)
        return 0.0 if None in (took, host) else max(took - host, 0.0)

    def total(self, jobs: Iterable, workers: int = 1) -> float:
        """Seconds of all these runs whose time is known, in so many processes on one device."""
        times = [(self.seconds(job)[0] or 0.0, self.undivided(job)) for job in jobs]
        return sum(((took - alone) / workers + alone for took, alone in times), 0.0)

    def _recorded(self, job, known: list[dict]) -> tuple[float | None, str]:
        """From the record that is most like the run."""
        like = [record for record in known if _comparable(record, job)]
        if not like:
            return None, "unknown"
        nearest = min(like, key=lambda record: _distance(record, job))
        config, planned = nearest["recipe"]["config"], job.recipe.config
        same = (nearest["variant"], nearest["dataset"]) == (job.recipe.variant, job.dataset)
        same = same and config["epochs"] == planned.epochs and config.get("precision", "fp32") == planned.precision
        return self._scaled(nearest, job), "measured" if same else "estimated"

    def _scaled(self, record: dict, job) -> float:
        """A record's seconds times what the run has more of: epochs, passes, examples, items, width, walks."""
        if _counts(job.recipe):
            return record["seconds"] * _ratio(job, record["dataset"], full=True)
        parts = [record["runs"].get(part, []) for part in ("final", "select")]
        final, select = map(_typical, parts)
        trained = sum(epoch.get("seconds", 0.0) for part in parts for epoch in part)
        held, rankings = len(record["runs"]["final"]), sum(map(len, record["runs"].values()))
        training = final + (select or (PASSES - 1) * final) * job.recipe.select
        beside = max(record["seconds"] - trained, 0.0) / rankings  # unknown of a run that was continued
        work = self._work(job.recipe.model, job.recipe.arguments)
        work /= self._work(job.recipe.model, record["recipe"]["arguments"])
        epoch = training / held * work + max(beside * (1 + job.recipe.select), self._evaluation(job))
        loss = record["recipe"]["config"].get("loss", "full")
        return job.recipe.config.epochs * epoch * _ratio(job, record["dataset"], full=loss == "full")

    def _benched(self, job) -> float | None:
        """From the benchmark's milliseconds per example; of a system that counts, a rough minute."""
        if _counts(job.recipe):
            return COUNTING
        row = self._row(job)
        examples = EXPECTED.get(job.dataset, {}).get("train_examples")
        if not row or examples is None:
            return None
        passes = PASSES if job.recipe.select else 1.0
        plain = recipe(job.recipe.model, job.dataset).arguments
        work = self._work(job.recipe.model, job.recipe.arguments) / self._work(job.recipe.model, plain)
        training = passes * examples * work * _milliseconds(row) / 1e3 * _items_ratio(job.dataset, row["dataset"])
        return job.recipe.config.epochs * (training + self._evaluation(job))

    def _evaluation(self, job) -> float:
        """Seconds of ranking after an epoch, of both runs, by the benchmark; 0 if it does not say."""
        row, sizes = self._row(job), EXPECTED.get(job.dataset, {})
        ranked = sizes.get("test_examples", 0) + HELD_OUT * sizes.get("train_examples", 0) * job.recipe.select
        return ranked * row.get("evaluation_ms_per_example", 0.0) / 1e3

    def _row(self, job) -> dict:
        model = job.recipe.model
        return self.bench.get((model, job.dataset)) or self.bench.get((model, BENCHED)) or {}

    def _work(self, model: str, arguments: dict) -> float:
        """Work of a training step with its auxiliary task, in units that are the same for all variants of a system."""
        volume, usual = _walked(model, arguments), _walked(model, recipe(model, BENCHED).arguments)
        task = self._task_share(model) * volume / usual if usual else 0.0
        return (1.0 + task) * arguments.get("dim", 100) / 100

    def _task_share(self, model: str) -> float:
        """What the auxiliary task adds to an epoch of the recipe, 1 for as much again: from a record without the task
        beside one with it, else from the benchmark."""
        usual = _walked(model, recipe(model, BENCHED).arguments)
        paces: dict[bool, float] = {}
        for record in self.on_cpu:
            volume = _walked(model, record["recipe"]["arguments"])
            if (record["system"], record["dataset"]) == (model, BENCHED) and volume in (0, usual):
                paces[volume > 0] = median(epoch["seconds"] for epoch in record["runs"]["final"])
        if len(paces) == 2 and paces[True] > paces[False]:
            return paces[True] / paces[False] - 1
        row = self.bench.get((model, BENCHED), {})
        return row.get("task_ms_per_example", 0.0) * row.get("examples_per_second", 0.0) / 1e3

    def _assumed(self, job) -> float | None:
        """On a card that nobody has tried: a CPU's work at the card's rate, and the launches of every step."""
        took, host = self._recorded(job, self.on_cpu)[0], self._host(job)
        took = self._benched(job) if took is None else took
        return took if None in (took, host) else took * CPU_FLOPS / GPU_FLOPS + host

    def _host(self, job) -> float | None:
        """Seconds of a card's host: its start and the launches of every step; None of a system that counts, and of a
        dataset of unknown size."""
        examples = EXPECTED.get(job.dataset, {}).get("train_examples")
        if examples is None or _counts(job.recipe):
            return None
        passes = PASSES if job.recipe.select else 1.0
        demo = self.bench.get((job.recipe.model, "demo"), {})
        host = demo.get("step_ms", 1e3 * LAUNCH) * examples / job.recipe.config.batch_size
        usual = _walked(job.recipe.model, recipe(job.recipe.model, BENCHED).arguments)
        if usual:
            walked = _walked(job.recipe.model, job.recipe.arguments) / usual
            steps = self._row(job).get("skip-gram_steps", 0.0)
            host += walked * steps * demo.get("skip-gram_step_ms", 1e3 * LAUNCH)
        return START + passes * job.recipe.config.epochs * host / 1e3


def benchmark(folder: Path) -> dict[tuple[str, str], dict]:
    """The rows of ``studies/speed.json``: (system, dataset) -> what `bench.bench` returned, without what it lacks."""
    path = folder / "studies" / "speed.json"
    rows = pd.read_json(path, orient="records").to_dict("records") if path.exists() else []
    return {(row["model"], row["dataset"]): {k: v for k, v in row.items() if not pd.isna(v)} for row in rows}


def speeds(folder: Path) -> dict[tuple[str, str], float]:
    """Milliseconds of training per example with its auxiliary tasks, (system, dataset) -> mean, as benchmarked."""
    return {key: _milliseconds(row) for key, row in benchmark(folder).items()}


def _milliseconds(row: dict) -> float:
    return 1e3 / row["examples_per_second"] + row.get("task_ms_per_example", 0.0)


def _readable(folder: Path) -> Iterator[dict]:
    for path in [*sorted(folder.glob("*.json")), *sorted((folder / "variants").glob("*.json"))]:
        try:
            yield records.read(path)
        except ValueError:  # `plan.state` says so
            continue


def _typical(epochs: list[dict]) -> float:
    """Seconds of training if every epoch had taken the median: one during which the machine slept does not count."""
    return len(epochs) * median(epoch.get("seconds", 0.0) for epoch in epochs) if epochs else 0.0


def _counts(recipe: Recipe) -> bool:
    return issubclass(MODELS[recipe.model], CountingModel)


def _comparable(record: dict, job) -> bool:
    """Of the same system and kind of loss, and on the same data or on data whose size is known."""
    if record["system"] != job.recipe.model:
        return False
    loss = record["recipe"]["config"].get("loss", "full") == job.recipe.config.loss
    sized = {record["dataset"], job.dataset} <= EXPECTED.keys() and all(
        "train_examples" in EXPECTED[name] for name in (record["dataset"], job.dataset)
    )
    return loss and (record["dataset"] == job.dataset or sized)


def _distance(record: dict, job) -> tuple:
    """The same variant first, then the same dataset, batches as large, the published recipe, as many epochs."""
    config, planned = record["recipe"]["config"], job.recipe.config
    other = (record["variant"] != job.recipe.variant, record["dataset"] != job.dataset)
    size = config["batch_size"] != planned.batch_size
    return (*other, size, record["variant"] != "", abs(config["epochs"] - planned.epochs), record["seed"] != job.seed)


def _ratio(job, dataset: str, full: bool) -> float:
    """Examples of the run's dataset over those of another one; with a full softmax times the same of the items."""
    if job.dataset == dataset:
        return 1.0
    examples = EXPECTED[job.dataset]["train_examples"] / EXPECTED[dataset]["train_examples"]
    return examples * (_items_ratio(job.dataset, dataset) if full else 1.0)


def _items_ratio(dataset: str, other: str) -> float:
    return EXPECTED[dataset]["items"] / EXPECTED[other]["items"] if {dataset, other} <= EXPECTED.keys() else 1.0


def _walked(model: str, arguments: dict) -> float:
    """Work of skip-gram in an epoch: pairs times the columns of their scores; 0 for systems without walks."""
    usual = {name: parameter.default for name, parameter in inspect.signature(MODELS[model]).parameters.items()}
    if "rounds" not in usual:
        return 0.0
    get = (usual | arguments).get
    pairs = get("g") * get("rounds") * get("length") * 2 * get("window") * get("pairs_per_pass")
    return pairs * (get("pairs") / (2 * get("window")) + get("negatives"))  # labels of a step, and negatives
