"""Checkpoints: safetensors files with a JSON header, written beside and renamed, so that there is never half a file."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sbr_core.files import replaced


def write(path: Path, tensors: dict[str, Tensor], info: dict) -> None:
    """Write tensors and a JSON object to `path`, or leave what was there before untouched.

    Raises:
        OSError: if the disk refuses (the message names the file); the previous file is still whole.
    """
    try:
        with replaced(path) as beside:
            save_file({k: v.contiguous() for k, v in tensors.items()}, beside, {"info": json.dumps(info)})
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} could not be written ({error}); what was there before is unchanged") from error


def whole(file: safe_open, name: str) -> Tensor:
    """A tensor of an open file."""
    return file.get_tensor(name)


def read(path: Path, device: str = "cpu", get: Callable = whole) -> tuple[dict[str, Tensor], dict]:
    """Tensors and JSON object of a file written by `write`.

    Args:
        get: function of the open file and a name: the tensor, or the part of it that is wanted.

    Raises:
        ValueError: if there is no such file, or it is damaged, or another program wrote it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; `sbr train --output {path.parent}` writes it")
    try:
        with safe_open(path, "pt", device=device) as file:
            return {name: get(file, name) for name in file.keys()}, json.loads(file.metadata()["info"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or not a checkpoint of this package ({error}); delete it and train again"
        ) from error


def header(path: Path) -> dict:
    """The JSON object alone of a file written by `write`; raises as `read` does."""
    return read(path, get=lambda file, name: torch.empty(0))[1]


def training_state(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Everything that the next step depends on: parameters, optimizer state, random number generators."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    return tensors


def restore_training_state(
    tensors: dict[str, Tensor], model: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> None:
    """Put the tensors of `training_state` back, in place."""
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimizer.{number}."):
                index, key = name.split(".")[2:]
                whole = tensor.ndim == 0 and tensor.dtype == torch.int64  # the step that SparseAdam counts in Python
                state.setdefault(int(index), {})[key] = tensor.item() if whole else tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    torch.set_rng_state(tensors["rng.cpu"].cpu())
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"].cpu())
