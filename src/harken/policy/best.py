"""The best policy of a run so far, kept beside its checkpoints."""

import torch

from harken.lm.checkpoint import load_tensors, publish_tensors
from harken.lm.trunk import Trunk
from harken.runs import Run

BEST_FILE = "checkpoints/best.safetensors"


def best_so_far(run: Run, worst: float) -> float:
    """Return the number that the kept policy was kept for; `worst` where none is kept yet."""
    path = run.folder / BEST_FILE
    return float(load_tensors(path)["number.step"][0]) if path.exists() else worst


def keep_policy(run: Run, trunk: Trunk, role: str, step: int, number: float) -> None:
    """Keep a role's weights in place of those kept before.

    A resumed run measures again what it had measured before, with the same result, so it does not matter that the file
    may be from a later step than the checkpoint it goes on from.

    Args:
        run: of which the file is removed when it is finished.
        trunk: holds the role.
        role: which weights.
        step: how many steps they had learned.
        number: why they are the best.
    """
    path = run.folder / BEST_FILE
    path.parent.mkdir(exist_ok=True)
    publish_tensors(path, {**trunk.state(role), "number.step": torch.tensor([number, step], dtype=torch.float64)})


def go_back_to_best(run: Run, trunk: Trunk, role: str) -> tuple[int, float]:
    """Set a role to the kept weights; return their step and number."""
    tensors = load_tensors(run.folder / BEST_FILE)
    number, step = tensors.pop("number.step").tolist()
    trunk.load_state(role, tensors)
    return int(step), number
