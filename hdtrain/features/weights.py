"""Local weights files into modules: safetensors or torch state dicts, never pickled code, never the network."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hdtrain.errors import WeightsError

WRAPPERS = ("state_dict", "model", "teacher")
MAX_NAMED = 4


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors in a `.safetensors` or torch file, unwrapped from `{"state_dict": …}` and the like.

    Raises:
        WeightsError: missing, unreadable, or not a mapping of names to tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tree: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such weights file") from None
    except (OSError, RuntimeError, SafetensorError, ValueError, EOFError, ImportError) as error:
        raise WeightsError(f"{path}: cannot be read as weights: {_first_line(error)}") from None
    except Exception as error:  # torch raises pickle's own exceptions for anything that is not tensors
        if type(error).__name__ not in ("UnpicklingError", "KeyError", "IndexError"):
            raise
        raise WeightsError(f"{path}: is not a plain state dict: {_what_else(path)}") from None
    for wrapper in WRAPPERS:
        if isinstance(tree, Mapping) and isinstance(tree.get(wrapper), Mapping):
            tree = tree[wrapper]
    if not isinstance(tree, Mapping) or not all(isinstance(value, Tensor) for value in tree.values()):
        raise WeightsError(f"{path}: expected a mapping of names to tensors")
    return dict(tree)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: Path, ignored: Iterable[str] = ()) -> None:
    """Load `state`; names that begin with one of `ignored` (a head that we do not use) may be left over.

    Raises:
        WeightsError: names the missing, unexpected and misshapen tensors.
    """
    wanted = module.state_dict()
    prefixes = tuple(ignored)
    missing = [f"missing {name}" for name in wanted if name not in state]
    over = [f"unexpected {name}" for name in state if name not in wanted and not name.startswith(prefixes or ("\0",))]
    shaped = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    refuse(path, [*missing, *over, *shaped], type(module).__name__)
    module.load_state_dict({name: state[name] for name in wanted})


def refuse(path: Path, problems: list[str], what: str) -> None:
    """Raise WeightsError if there are problems, naming the first few."""
    if problems:
        more = f" and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        raise WeightsError(f"{path}: not the weights of {what}: {'; '.join(problems[:MAX_NAMED])}{more}")


def _what_else(path: Path) -> str:
    """Which classes a file of torch's wants to be read with; empty for a file of no kind that torch knows."""
    try:
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # whatever torch's reader meets in bytes that are none of its own
        return "torch cannot read it; is it complete, and a weights file?"
    return (
        f"reading it would run code of {', '.join(classes[:MAX_NAMED]) or 'its own'}, and hdtrain reads tensors only; "
        "if you trust it, save its tensors alone where those classes are installed: "
        f"torch.save({{'state_dict': torch.load('{path.name}', weights_only=False)['state_dict']}}, 'tensors.ckpt')"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
