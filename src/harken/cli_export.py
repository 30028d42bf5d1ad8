"""The command `harken export`: any model as one plain folder, adapters merged."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from harken.cli_common import ModelOption, model_name, reporter, show


def export(
    model: ModelOption,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write; a model there is replaced.")],
    dtype: Annotated[
        Literal["bfloat16", "float32"], typer.Option("--dtype", metavar="T", help="bfloat16 or float32.")
    ] = "bfloat16",
) -> None:
    """Write a model as one plain Hugging Face folder, an adapter merged into its base.

    The folder is read back and compared before the command ends. Every training command writes such a folder already
    (`out/ppo/model`); this one is for adapters, GGUF files and other precisions.
    """
    from harken.lm.export import export_model

    show(str(export_model(model_name(model), out, dtype=dtype, notify=reporter().say)))
