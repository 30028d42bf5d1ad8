"""A role as a plain Hugging Face folder, read back and compared before anyone relies on it."""

import shutil
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from harken.artifacts import artifact_digest, storage_errors, write_folder_manifest
from harken.config import ComputeConfig
from harken.errors import SelfTestError, UsageError
from harken.lm.batch import Tokens, pad
from harken.lm.checkpoint import save_model
from harken.lm.forward import completion_logprobs
from harken.lm.load import Notify, ignore, load_model
from harken.lm.q_heads import GUIDE_FILE, HEADS_FILE, vocabulary
from harken.lm.trunk import Trunk

PROBE_TOKENS = 24
"""Random tokens that model and copy read; a folder's weights are compared besides, all of them."""

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5}
"""Largest mean difference of the probe tokens' log-probabilities, nats. The weights are compared bit by bit; this finds
what stands beside them, a wrong position table or norm, which is off by whole nats. In bf16 merging rounds weights, and
logits of size 20 are 0.125 apart."""


def export_role(folder: Path, trunk: Trunk, role: str | None) -> None:
    """Write a role as a plain Hugging Face folder, adapters merged, and check that it reads back as the role.

    Its generation config names every token at which the role stops, those of `chat.stop` too, so that other programs
    stop where Harken does.

    Args:
        folder: created if missing.
        trunk: base and roles.
        role: which one, without mask or guide; None is the base.

    Raises:
        SelfTestError: the folder does not hold what was in memory; the message says what differs.
        StorageError: it cannot be written.
    """
    save_model(folder, trunk, role)
    check_export(folder, trunk, role)


def export_model(
    model: str | Path,
    out: Path,
    *,
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    notify: Notify = ignore,
) -> Path:
    """Write any model, or a model with a PEFT adapter on it, as one plain Hugging Face folder; return the folder.

    Adapters are merged in fp32 and the sum is cast once. Q heads of ILQL go along.

    Args:
        model: folder, adapter folder, Hugging Face id, GGUF file, or `smollm2`.
        out: created if missing; a model that lies there is replaced.
        dtype: of the weights written.
        notify: called with one line for people when something takes long or was assumed.

    Raises:
        UsageError: `out` is the folder of the model itself, or holds something else.
        DataError: no such model, or it cannot be read.
        SelfTestError: what was written does not read back as the model.
    """
    if Path(model).resolve() == out.resolve():
        raise UsageError(f"{out}: is the folder of the model itself; choose another --out")
    if out.exists() and not (out / "config.json").is_file() and any(out.iterdir()):
        raise UsageError(f"{out}: holds something that is no model; choose a new folder for --out")
    trunk = Trunk(load_model(model, compute=ComputeConfig(dtype=dtype, device="cpu"), notify=notify))
    temporary = out.with_name(f".{out.name}.tmp")
    with storage_errors(out):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        export_role(temporary, trunk, None)
        for name in (HEADS_FILE, GUIDE_FILE):
            if (Path(model) / name).is_file():
                shutil.copyfile(Path(model) / name, temporary / name)
        source = artifact_digest(Path(model)) if Path(model).exists() else str(model)
        write_folder_manifest(temporary, "model", parents={"model": source})
        shutil.rmtree(out, ignore_errors=True)
        temporary.rename(out)
    return out


@torch.no_grad()
def check_export(folder: Path, trunk: Trunk, role: str | None) -> None:
    """Load a folder that `save_model` wrote and compare weights, stop tokens and log-probabilities with the role's.

    Args:
        folder: of a plain model.
        trunk: what was saved.
        role: which role of it.

    Raises:
        SelfTestError: something differs.
    """
    compute = ComputeConfig(dtype="float32" if trunk.dtype == torch.float32 else "bfloat16", device=str(trunk.device))
    copy = Trunk(load_model(folder, compute=compute))
    found: dict[str, Tensor] = copy.merged_weights(None)
    wanted = trunk.merged_weights(role)
    for name in sorted(wanted.keys() | found.keys()):
        same = name in wanted and name in found and torch.equal(wanted[name], found[name])
        if not same:
            raise SelfTestError(f"{folder}: {name} reads back otherwise than it was in memory; do not use this folder")
    # The config may ask for another template than the folder's own, so only the tokens themselves are compared.
    if missing := trunk.chat.stop_ids - copy.chat.stop_ids:
        raise SelfTestError(f"{folder}: read back, the model does not stop at the tokens {sorted(missing)} any more")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary(copy), (min(PROBE_TOKENS, trunk.context_length),), generator=generator).tolist()
    batch = pad([Tokens(ids[:1], ids[1:])], trunk.device)
    read = [completion_logprobs(*one, batch).logprobs for one in ((trunk, role), (copy, None))]
    off = float((read[0] - read[1]).abs().sum() / batch.completion_mask.sum())
    if not off <= TOLERANCE[trunk.dtype]:
        raise SelfTestError(
            f"{folder}: read back, the model gives log-probabilities that differ by {off:.3g} nats from those in "
            f"memory, expected at most {TOLERANCE[trunk.dtype]:g}; do not use this folder"
        )
