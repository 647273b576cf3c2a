"""From clicks to a ranked shelf: a trained model with the raw item ids it speaks.

Shapes: B sessions, K recommendations, V items, W width of the vectors that are searched.
"""

import csv
import io
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sbr_core import checkpoints
from sbr_core.batches import Batch
from sbr_core.datasets import Dataset
from sbr_core.evaluate import CHUNK_SCORES
from sbr_core.item_index import PIECE, best_of, exact_top
from sbr_core.models import MODELS, bound, build
from sbr_core.models.base import CountingModel
from sbr_core.sessions import Windows

FILE = "model.safetensors"
Clicks = Sequence | Tensor | np.ndarray  # raw ids of a session, oldest first
CHUNK = 256  # sessions answered at a time, fewer where they would take more than CHUNK_SCORES numbers


class Recommender:
    """A model, the raw id of each of its items, and how often each was clicked in training.

    Args:
        model: trained; it is put into evaluation mode, and not to be trained on: its item vectors are kept.
        item_ids: (V,) raw ids, integers or strings.
        counts: (V,) training clicks: what is recommended when nothing is known of a session.
        max_len, keep: sessions are cut to their "last" or "first" so many clicks, as they were in training.
    """

    def __init__(
        self,
        model: nn.Module,
        item_ids: np.ndarray,
        counts: torch.Tensor,
        max_len: int | None = None,
        keep: str = "last",
    ):
        self.max_len, self.keep = max_len, keep
        self.model, self.item_ids, self.counts = model.eval(), np.asarray(item_ids), counts.float()
        self.device = next(iter(model.state_dict().values())).device

    @cached_property
    def index(self) -> dict:
        """Table row of every raw id, made when the first session is read: of millions of items it takes seconds."""
        return {item: row for row, item in enumerate(self.item_ids.tolist())}

    @cached_property
    def items(self) -> Float[Tensor, "V W"] | None:
        """`SessionModel.search_items`, computed once; None where the scores are no products."""
        items = self.model.search_items() if hasattr(self.model, "search_items") else None
        return items if items is None else _sound(items)

    @classmethod
    def of(cls, model: nn.Module, dataset: Dataset, max_len: int | None = None, keep: str = "last") -> "Recommender":
        """A recommender of a model that was trained on this dataset."""
        counts = torch.bincount(dataset.train.clicks.long(), minlength=dataset.num_items)
        return cls(model, dataset.item_ids, counts, max_len, keep)

    @classmethod
    def load(cls, folder: Path | str, device: str = "cpu") -> "Recommender":
        """Read what `save` wrote.

        Raises:
            ValueError: if the folder holds no such file, or a damaged one.
        """
        tensors, info = checkpoints.read(Path(folder) / FILE, device)
        item_ids = tensors.pop("item_ids").cpu().numpy() if "item_ids" in tensors else np.array(info["item_ids"])
        counts = tensors.pop("counts")
        model = build(info["model"], len(item_ids), **info.get("constructor", info["arguments"])).to(device)
        if isinstance(model, CountingModel):
            model.set_tables(tensors)
        else:
            model.restore(tensors)
        return cls(model, item_ids, counts, info.get("max_len"), info.get("keep", "last"))

    def save(self, folder: Path | str, name: str, arguments: dict) -> Path:
        """Write the model to `folder`, with the `name` and `arguments` that `models.build` made it from."""
        path = Path(folder) / FILE
        checkpoints.write(path, *self.contents(name, arguments))
        return path

    def contents(self, name: str, arguments: dict) -> tuple[dict, dict]:
        """What `save` writes: tensors, and a JSON object."""
        info, ids = {"model": name, "arguments": arguments, "max_len": self.max_len, "keep": self.keep}, {}
        if name in MODELS:
            info["constructor"] = bound(name, arguments)  # with the defaults of this day
        if np.issubdtype(self.item_ids.dtype, np.integer):
            ids = {"item_ids": torch.as_tensor(self.item_ids.astype(np.int64))}
        else:
            info["item_ids"] = self.item_ids.tolist()
        return self.model.state_dict() | ids | {"counts": self.counts}, info

    def truncate(self, windows: Windows) -> Windows:
        """The examples with inputs cut as in training."""
        return getattr(windows, self.keep)(self.max_len) if self.max_len else windows  # .last or .first

    def parse(self, text: str) -> list:
        """Raw ids from a text such as "214,55,214", of the type that the catalogue has.

        The text is read as CSV: an id in quotes may hold commas. Blanks at the ends of an id that the catalogue does
        not have with them do not count.

        Raises:
            ValueError: if the catalogue has integer ids and the text has something else.
        """
        words = [word for row in csv.reader(io.StringIO(text, newline="")) for word in row if word.strip()]
        if not np.issubdtype(self.item_ids.dtype, np.integer):
            return [word if word in self.index else word.strip() for word in words]
        try:
            if "_" in text:
                raise ValueError("Python takes 1_4 for 14")
            return [int(word) for word in words]
        except ValueError as error:
            raise ValueError(f"the items of this model are integers, separated by commas; got {text!r}") from error

    def recommend(self, clicks: Clicks, k: int = 20) -> tuple[list, list[float]]:
        """The `k` best next items after these clicks (raw ids, oldest first), and their scores.

        Clicks that the model does not know are skipped with a warning; a session without any known click is answered
        with the most popular items, scored by their share of the training clicks.
        """
        return self.recommend_batch([clicks], k)[0]

    @torch.no_grad()
    def recommend_batch(self, sessions: Sequence[Clicks], k: int = 20) -> list[tuple[list, list[float]]]:
        """`recommend` for many sessions, a few hundred at a time.

        Where scores are products, they are made for a piece of the catalogue at a time (`item_index.exact_top`);
        elsewhere for so many sessions that there are at most `evaluate.CHUNK_SCORES` of them. So memory beyond the
        model and, for distances or on the unit sphere, one more table does not grow with the sessions.
        """
        if not 1 <= k <= len(self.item_ids):
            raise ValueError(f"k must lie in 1..{len(self.item_ids)} (the catalogue), got {k}")
        known = [self._rows(clicks) for clicks in sessions]
        asked = [number for number, rows in enumerate(known) if rows]
        answers: list = [None] * len(known)
        size = max(1, min(CHUNK, CHUNK_SCORES // self._numbers(k)))
        for begin in range(0, len(asked), size):
            part = asked[begin : begin + size]
            batch = Batch.of([known[number] for number in part], len(self.item_ids)).to(self.device)
            for number, shelf in zip(part, self._shelves(*self._top(batch, k)), strict=True):
                answers[number] = shelf
        popular = None if len(asked) == len(known) else _best((self.counts / self.counts.sum())[None], k)
        return [self._shelves(*popular)[0] if answer is None else answer for answer in answers]

    def _rows(self, clicks: Clicks) -> list[int]:
        """Table rows of the known clicks, of as many as the model was trained on."""
        clicks = clicks.tolist() if hasattr(clicks, "tolist") else clicks  # a tensor's or an array's numbers
        unknown = [click for click in clicks if click not in self.index]
        if unknown:
            shown = ", ".join(map(str, unknown[:5])) + (" ..." if len(unknown) > 5 else "")
            warnings.warn(
                f"{len(unknown)} of {len(clicks)} clicks are unknown to the model and skipped: {shown}", stacklevel=4
            )
        rows = [self.index[click] for click in clicks if click in self.index]
        if self.max_len is None:
            return rows
        return rows[-self.max_len :] if self.keep == "last" else rows[: self.max_len]

    def _numbers(self, k: int) -> int:
        """How many a session takes: scores, and the vectors of the `k` that are scored again."""
        count = len(self.item_ids)
        return count if self.items is None else min(count, PIECE) + k * self.items.shape[1]

    def _top(self, batch: Batch, k: int) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"]]:
        """Scores and rows of the k best; items of equal score in the order of the catalogue."""
        query = self.model.encode(batch)
        if self.items is None:
            return _best(_sound(self.model.score(query)), k)
        rows = exact_top(_sound(self.model.search_query(query)), self.items, k)[1].sort(1).values
        return best_of(self.model.score(query, rows), rows, k)

    def _shelves(self, scores: Float[Tensor, "B K"], rows: Int[Tensor, "B K"]) -> list[tuple[list, list[float]]]:
        """Raw ids and scores of every session."""
        return list(zip(self.item_ids[rows.cpu().numpy()].tolist(), scores.tolist(), strict=True))


def _sound(values: Tensor) -> Tensor:
    """Scores, or what they are products of, if all are numbers.

    Raises:
        ValueError: if one is NaN.
    """
    if bool(values.isnan().any()):
        raise ValueError("a score is NaN: the model has diverged; train it again with a lower learning rate")
    return values


def _best(scores: Float[Tensor, "B V"], k: int) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"]]:
    """Scores and rows of the k best."""
    return best_of(scores, torch.arange(scores.shape[1], device=scores.device).expand_as(scores), k)
