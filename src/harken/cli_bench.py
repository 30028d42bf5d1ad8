"""Commands about speed and memory: bench, plan."""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from harken.cli_common import JsonOption, model_name, reporter, settings, show, show_json, table

if TYPE_CHECKING:
    from harken.bench import Bench
    from harken.plan import Device, Job, PhasePlan
    from harken.shapes import ModelShape

GB = 1e9


GpuMemory = Annotated[float, typer.Option("--gpu-memory", metavar="GB", help="Memory of each.")]
GpuRate = Annotated[
    float, typer.Option("--gpu-tflops", metavar="X", help="Matrix rate of each in bf16, TFLOP/s (fp32: a half).")
]
GpuBandwidth = Annotated[float, typer.Option("--gpu-bandwidth", metavar="X", help="Memory bandwidth of each, GB/s.")]
StageOption = Annotated[
    Literal["ppo", "sft", "reward"], typer.Option("--stage", help="What is to be run.", metavar="S")
]
TuneOption = Annotated[
    Literal["lora", "full"], typer.Option("--tune", metavar="T", help="lora (adapters) or full (all weights).")
]
BatchOption = Annotated[
    int, typer.Option("--batch", metavar="N", min=1, help="Completions of an iteration, or rows of a step.")
]
CriticOption = Annotated[
    Literal["own", "head"],
    typer.Option("--critic", metavar="C", help="PPO's: head (fitted to the reference's states) or own (trained)."),
]
TopLayersOption = Annotated[
    float | None,
    typer.Option(
        "--top-layers",
        metavar="N",
        help="Adapters on the last N layers, or on this share of them; all, and half in ppo.",
    ),
]
PrecisionOption = Annotated[
    Literal["bfloat16", "float32"], typer.Option("--precision", metavar="P", help="bfloat16 or float32.")
]


def bench(
    model: Annotated[
        str, typer.Option("--model", metavar="M", help="Folder, Hugging Face id, .gguf file, or smollm2.")
    ] = "smollm2",
    quick: Annotated[bool, typer.Option("--quick", help="Little work: a rough answer in seconds.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Also train all weights, which needs more memory.")] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of ComputeConfig, as in dtype=float32."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how fast each phase runs on this machine.

    Sampling, scoring and training are timed at least three times each and compared with what the machine can do: its
    measured matrix rate and memory bandwidth. What the columns mean is in docs/performance.md.
    """
    from harken.config import ComputeConfig

    compute = settings(ComputeConfig, None, changes)
    from harken.bench import QUICK, Sizes
    from harken.bench import bench as measure

    sizes = QUICK if quick else Sizes()
    found = measure(model_name(model), compute, sizes=sizes, with_full=full, reporter=reporter())
    if as_json:
        show_json({"model": model, **dataclasses.asdict(found)})
    else:
        show(_bench_text(found))


def _bench_text(found: "Bench") -> str:
    rows = [["phase", "work", "tokens/s", "seconds", "matrix rate", "bandwidth", "padding", "peak memory"]]
    for phase in found.phases:
        rows.append(
            [
                phase.phase,
                phase.work,
                f"{phase.tokens_per_s:,.0f}",
                f"{phase.seconds:.2f} [{phase.seconds_min:.2f}, {phase.seconds_max:.2f}]",
                f"{phase.share_of_matrix_rate:.0%}",
                "-" if phase.share_of_bandwidth is None else f"{phase.share_of_bandwidth:.0%}",
                f"{phase.padding_waste:.0%}",
                f"{phase.peak_memory_bytes / GB:.2f} GB",
            ]
        )
    machine = f"{found.dtype} on {found.device}: {found.matrix_gflops:,.0f} GFLOP/s, {found.bandwidth_gb_s:.1f} GB/s"
    kernels = "compiled kernels" if found.has_kernels else "no kernels of its own (docs/commands.md says when)"
    return f"{machine}, {kernels}\n{table(rows)}"


def plan(
    model: Annotated[
        str,
        typer.Option("--model", metavar="SIZE", help="Size such as 7B, smollm2, a model folder, or a Hugging Face id."),
    ],
    gpus: Annotated[int, typer.Option("--gpus", metavar="N", min=1, help="Number of GPUs.")] = 1,
    gpu_memory: GpuMemory = 80.0,
    gpu_tflops: GpuRate = 990.0,
    gpu_bandwidth: GpuBandwidth = 3350.0,
    here: Annotated[bool, typer.Option("--here", help="This machine, measured now, in place of GPUs.")] = False,
    stage: StageOption = "ppo",
    tune: TuneOption = "lora",
    rank: Annotated[int, typer.Option("--rank", metavar="N", min=1, help="Rank of the adapters.")] = 16,
    top_layers: TopLayersOption = None,
    critic: CriticOption = "head",
    precision: PrecisionOption = "bfloat16",
    batch: BatchOption = 64,
    epochs: Annotated[int, typer.Option("--epochs", metavar="N", min=1, help="PPO's passes over them.")] = 4,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", metavar="N", min=1, help="Of each row.")] = 256,
    new_tokens: Annotated[int, typer.Option("--new-tokens", metavar="N", min=1, help="Of each row.")] = 256,
    microbatch_tokens: Annotated[
        int, typer.Option("--microbatch-tokens", metavar="N", min=1, help="As in compute.")
    ] = 2048,
    sampling_rows: Annotated[int, typer.Option("--sampling-rows", metavar="N", min=1, help="Drawn together.")] = 64,
    as_json: JsonOption = False,
) -> None:
    """Predict memory and time of each phase before anything is started.

    Nothing is loaded or run, except that --here measures this machine for a second. The memory figures were checked
    against measured runs (docs/performance.md); more than one GPU is arithmetic only: this version trains on one.
    """
    from harken.plan import Job
    from harken.plan import plan as predict

    is_ppo = stage == "ppo"
    job = Job(
        tune=tune,
        rank=rank,
        top_layers=_top_layers(top_layers, stage),
        weight_bytes=2 if precision == "bfloat16" else 4,
        trained_roles=2 if is_ppo and critic == "own" else 1,
        has_head_critic=is_ppo and critic == "head",
        batch=2 * batch if stage == "reward" else batch,
        epochs=epochs if is_ppo else 1,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        microbatch_tokens=microbatch_tokens,
        sampling_rows=sampling_rows,
    )
    shape = _shape(model)
    halved = 1 if precision == "bfloat16" else 2
    device, job = _here(precision, job) if here else (_gpu(gpu_memory, gpu_tflops / halved, gpu_bandwidth), job)
    count = 1 if here else gpus
    found = predict(shape, job, device, devices=count, has_sampling=is_ppo)
    if as_json:
        phases = [dataclasses.asdict(phase) for phase in found]
        show_json({"model": model, "parameters": shape.parameters, "devices": count, "phases": phases})
    else:
        show(_plan_text(f"{model}: {shape.parameters / GB:.2f} billion parameters", found, device, count))


def _shape(model: str) -> "ModelShape":
    """Return a model's shape: of a known size, of a folder's config.json, or of a Hugging Face id's."""
    from harken.artifacts import read_json
    from harken.shapes import SIZES, shape_from_config

    known = {name.lower(): shape for name, shape in SIZES.items()}
    if model.lower() in known:
        return known[model.lower()]
    file = Path(model_name(model)) / "config.json"
    if file.is_file():
        return shape_from_config(read_json(file), str(file))
    from harken.errors import UsageError

    if Path(model).suffix or "/" not in model:
        raise UsageError(
            f"--model {model}: no such size or folder; give one of {', '.join(SIZES)}, a folder, or a Hugging Face id"
        )
    from harken.lm.load import read_model_config

    return shape_from_config(read_model_config(model), model)


def _gpu(memory: float, tflops: float, bandwidth: float) -> "Device":
    from harken.errors import UsageError
    from harken.plan import Device

    for option, value in (("memory", memory), ("tflops", tflops), ("bandwidth", bandwidth)):
        if not (0 < value < math.inf):
            raise UsageError(f"--gpu-{option} {value:g}: expected a number above zero")
    return Device(memory * GB, tflops * 1e12, bandwidth * 1e9)


def _top_layers(asked: float | None, stage: str) -> float | None:
    """Return what the stage's settings would be with what was asked for, or its default."""
    from harken.config import LoraConfig, PpoConfig, build

    if asked is None:
        default = PpoConfig().tune if stage == "ppo" else LoraConfig()
        return default.top_layers if isinstance(default, LoraConfig) else None
    number = int(asked) if asked.is_integer() else asked
    return build(LoraConfig, {"top_layers": number}, where="--top-layers").top_layers


def _here(precision: Literal["bfloat16", "float32"], job: "Job") -> tuple["Device", "Job"]:
    """Measure this machine; a CPU keeps other things in memory than a GPU."""
    from harken.lm.fit import cpu_settings
    from harken.lm.load import pick_device, pick_dtype
    from harken.lm.machine import available_memory, matrix_rate, memory_bandwidth
    from harken.plan import Device

    device = pick_device("auto")
    dtype = pick_dtype(precision, device)
    if device.type == "cpu":
        settings: dict[str, Any] = cpu_settings(dtype.itemsize)
        job = dataclasses.replace(job, **settings)
    return Device(available_memory(device), matrix_rate(dtype, device), memory_bandwidth(device)), job


def _plan_text(title: str, found: "list[PhasePlan]", device: "Device", count: int) -> str:
    rows = [["phase", "memory", "of", "fits", "seconds", "tokens/s"]]
    made_of = ["largest parts, GB"]
    for phase in found:
        largest = sorted(phase.parts.items(), key=lambda item: -item[1])[:3]
        rows.append(
            [
                phase.phase,
                f"{phase.bytes / GB:.2f} GB",
                f"{device.memory / GB:.0f} GB",
                "yes" if phase.fits else "NO",
                f"{phase.seconds:.3g}",
                f"{phase.tokens_per_s:,.0f}",
            ]
        )
        made_of.append(", ".join(f"{name} {size / GB:.2f}" for name, size in largest))
    where = "on one device" if count == 1 else f"on each of {count} devices, rows and weights divided among them"
    lines = [f"{line}  {parts}" for line, parts in zip(table(rows).splitlines(), made_of, strict=True)]
    return "\n".join([f"{title}; predicted {where}", *lines])
