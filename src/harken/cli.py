"""The command line `harken`: what the commands are, and how they end.

Exit codes: 0 done, 1 failed or stopped, 2 wrong usage or bad input. An error is one line on standard error; set
HARKEN_DEBUG=1 for the traceback. Commands import what they need when they run, so that `harken --help` starts at once.
"""

import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import typer
import typer.main
from typer.core import TyperGroup

from harken.cli_bench import bench, plan
from harken.cli_common import examples
from harken.cli_doctor import doctor
from harken.cli_export import export
from harken.cli_feedback import collect_app, data_app
from harken.cli_generate import generate
from harken.cli_loop import demo, init, report, run
from harken.cli_offline import ilql, rft
from harken.cli_policy import KIN, kin_command, ppo
from harken.cli_preference import kto, loss_command, online_dpo
from harken.cli_stages import evaluate, preferences, reward, score, sft
from harken.cli_ui import ui
from harken.errors import HarkenError

WHOLE = 1000
"""Characters that no sentence reaches."""

INTERRUPTED = 130
"""What typer returns after Ctrl-C."""

EXTRAS = {
    **dict.fromkeys(("sqlalchemy", "alembic", "argon2", "fastapi", "uvicorn", "nh3", "markdown_it"), "collect"),
    "phonenumbers": "collect",
    "presidio_analyzer": "pii",
    "psycopg": "postgres",
    "pyarrow": "parquet",
    "datasets": "hub",
    "matplotlib": "report",
    "vaderSentiment": "demo",
}
"""Optional package -> the extra that brings it."""

SECTIONS = {
    "The whole loop": ("demo", "run", "init"),
    "Judgments of people": ("ui", "collect", "preferences", "data"),
    "Models to start from": ("sft", "reward"),
    "Policies that earn reward": ("ppo", *KIN, "rft"),
    "Policies from preferences": ("dpo", "ipo", "kto", "orpo", "simpo", "cpo", "online-dpo", "ilql"),
    "What a model is worth": ("generate", "score", "evaluate", "report", "export"),
    "This machine": ("plan", "bench", "doctor"),
}
"""Heading in `harken --help` -> its commands."""

# typer wraps click, in new versions a copy of its own; the class is found with either.
UsageProblem: type[Exception] = typer.BadParameter.__mro__[2]


class InSections(TyperGroup):
    """A group that lists its commands by what they are for, in the order of the loop."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands' names."""
        return [name for names in SECTIONS.values() for name in names]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each section with the first sentence of its commands' help, which click would cut off."""
        width = max(map(len, self.list_commands(ctx)))
        for heading, names in SECTIONS.items():
            with formatter.section(heading):
                rows = [(name.ljust(width), self.commands[name].get_short_help_str(WHOLE)) for name in names]
                formatter.write_dl(rows)


app = typer.Typer(
    name="harken",
    cls=InSections,
    help="Turn what people say about a language model's completions into a better model.",
    epilog=examples(
        "harken demo",
        "harken run reviews --out out/reviews",
        "harken COMMAND --help",
    ),
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command(
    epilog=examples(
        "harken demo",
        "harken demo --fast",
        "harken demo --out out/mine --set ppo.steps=8",
    )
)(demo)
app.command(
    epilog=examples(
        "harken run reviews",
        "harken run my/recipe.toml --out out/mine",
        "harken run reviews --set seed=1 --set ppo.kl.coef=0.1",
    )
)(run)
app.command(epilog=examples("harken init my", "harken run my/recipe.toml --out my/out"))(init)
app.command(
    epilog=examples(
        "harken generate --model smollm2 --prompts p.txt --out c.jsonl",
        "harken generate --model out/ppo --prompts p.jsonl \\",
        "    --out c.jsonl --n 4 --set sampling.temperature=0.7",
        "harken generate --model out/sft --prompts p.jsonl \\",
        "    --out c.jsonl --best-of 16 --reward out/reward",
    )
)(generate)
app.add_typer(collect_app, name="collect")
app.add_typer(data_app, name="data")
app.command(
    epilog=examples(
        "harken preferences out/export --out pairs.jsonl",
        "harken preferences out/export --out pairs.jsonl \\",
        "    --set min_difference=1 --set max_pairs=5000",
        "harken preferences out/export --out pairs.jsonl \\",
        "    --set resolve.kind=reliability --set ties=keep",
    )
)(preferences)
app.command(
    epilog=examples(
        "harken sft --model smollm2 --data demos.jsonl --out out/sft",
        "harken sft --model smollm2 --data demos.jsonl --out out/sft \\",
        "    --set epochs=2 --set optimizer.learning_rate=1e-4",
    )
)(sft)
app.command(
    epilog=examples(
        "harken reward --model out/sft --data pairs.jsonl --out out/reward",
    )
)(reward)
app.command(
    "dpo",
    epilog=examples(
        "harken dpo --model out/sft --data pairs.jsonl --out out/dpo",
        "harken dpo --model out/sft --data pairs.jsonl --out out/dpo \\",
        "    --set loss.beta=0.3 --set optimizer.learning_rate=2e-5",
    ),
)(loss_command("dpo"))
app.command(
    "ipo",
    epilog=examples(
        "harken ipo --model out/sft --data pairs.jsonl --out out/ipo",
        "harken ipo --model out/sft --data pairs.jsonl --out out/ipo \\",
        "    --set loss.length_normalized=true",
    ),
)(loss_command("ipo"))
app.command(
    epilog=examples(
        "harken kto --model out/sft --data labeled.jsonl --out out/kto",
        "harken kto --model out/sft --data pairs.jsonl --out out/kto \\",
        "    --set loss.good_weight=1.2",
    )
)(kto)
app.command("orpo", epilog=examples("harken orpo --model smollm2 --data pairs.jsonl --out out/orpo"))(
    loss_command("orpo")
)
app.command(
    "simpo",
    epilog=examples(
        "harken simpo --model out/sft --data pairs.jsonl \\",
        "    --out out/simpo --set loss.beta=2 --set loss.margin=1",
    ),
)(loss_command("simpo"))
app.command("cpo", epilog=examples("harken cpo --model out/sft --data pairs.jsonl --out out/cpo"))(loss_command("cpo"))
app.command(
    "online-dpo",
    epilog=examples(
        "harken online-dpo --model out/sft --prompts p.jsonl \\",
        "    --reward out/reward --out out/online",
        "harken online-dpo --model out/sft --prompts p.jsonl \\",
        "    --reward lexicon --out out/online --set loss.beta=0.3 \\",
        "    --set completions_per_prompt=4 --set reference_every=20",
    ),
)(online_dpo)
app.command(
    epilog=examples(
        "harken ppo --model out/sft --prompts p.jsonl \\",
        "    --reward out/reward --out out/ppo",
        "harken ppo --model out/sft --prompts p.jsonl \\",
        "    --reward 0.8*out/reward --reward 0.2*rules.py:short \\",
        "    --out out/ppo --config ppo.toml --set steps=50",
        "harken ppo --model out/sft --prompts p.jsonl \\",
        "    --reward out/reward --out out/ppo --preset llama-2",
        "harken ppo --model out/sft --prompts p.jsonl \\",
        "    --reward out/reward --out out/ppo --judge lexicon",
        "harken ppo --model out/sft --prompts p.jsonl \\",
        "    --reward out/reward --out out/nlpo --set mask.top_p=0.9",
    )
)(ppo)
for name in KIN:
    app.command(
        name,
        epilog=examples(
            f"harken {name} --model out/sft --prompts p.jsonl \\",
            f"    --reward out/reward --out out/{name}",
            f"harken {name} --model out/sft --prompts p.jsonl \\",
            f"    --reward out/reward --out out/{name} --set kl.coef=0.1",
        ),
    )(kin_command(name))
app.command(
    epilog=examples(
        "harken ilql --model out/sft --data scored.jsonl --out out/ilql",
        "harken ilql --model out/sft --data pairs.jsonl --out out/ilql \\",
        "    --set beta=4 --set loss.expectile=0.8",
        "harken generate --model out/ilql --prompts p.jsonl \\",
        "    --out c.jsonl --set guidance=4",
    )
)(ilql)
app.command(
    epilog=examples(
        "harken rft --model out/sft --prompts p.jsonl \\",
        "    --reward out/reward --out out/rft",
        "harken rft --model out/sft --prompts p.jsonl \\",
        "    --reward lexicon --out out/rft --set rounds=3",
    )
)(rft)
app.command(
    epilog=examples(
        "harken score --reward out/reward --prompts p.jsonl \\",
        "    --in c.jsonl --out scores.jsonl",
    )
)(score)
app.command(
    epilog=examples(
        "harken evaluate --model out/ppo --against out/sft \\",
        "    --prompts heldout.jsonl --reward out/reward \\",
        "    --out out/evaluate",
    )
)(evaluate)
app.command(
    epilog=examples(
        "harken export --model out/ppo/adapter --out merged",
        "harken export --model smollm2 --out plain --dtype float32",
    )
)(export)
app.command(
    epilog=examples(
        "harken ui",
        "harken ui --store sqlite:///f.db --port 9000",
        "harken ui --store postgresql://harken@db/feedback --workers 4 \\",
        "    --address https://label.example.org",
    )
)(ui)
app.command(
    epilog=examples(
        "harken report out/demo --out report.html",
        "harken report out/demo --datasheet --about about.toml",
        "harken report export --datasheet --store sqlite:///f.db",
    )
)(report)
app.command(
    epilog=examples(
        "harken plan --model 7B",
        "harken plan --model 8B --gpus 8 --tune full --batch 512",
        "harken plan --model smollm2 --here --precision float32",
    )
)(plan)
app.command(
    epilog=examples(
        "harken bench",
        "harken bench --quick --json",
        "harken bench --full --set dtype=float32",
    )
)(bench)
app.command(epilog=examples("harken doctor", "harken doctor --json"))(doctor)


def main() -> NoReturn:
    """Run the command of this process and exit."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; what went wrong is one line on standard error."""
    debug = os.environ.get("HARKEN_DEBUG") == "1"
    # Read when the library is imported, which no command has done yet.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    command = typer.main.get_command(app)
    try:
        code: Any = command.main(
            list(arguments) or ["--help"], prog_name="harken", standalone_mode=False, terminal_width=help_width()
        )
    except UsageProblem as problem:
        return _fail(_usage_message(problem), int(getattr(problem, "exit_code", 2)))
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except ModuleNotFoundError as error:
        if debug or error.name not in EXTRAS:
            raise
        return _fail(f"this command needs the package {error.name}: pip install 'harken[{EXTRAS[error.name]}]'", 2)
    except HarkenError as error:
        if debug:
            traceback.print_exc()
        return _fail(str(error), error.exit_code)
    except Exception as error:
        if debug:
            raise
        message = f"{type(error).__name__}: {error}"
        _fail(f"a mistake in Harken, not yours: {message} (HARKEN_DEBUG=1 shows where; please report it)", 1)
        raise SystemExit(1) from error
    if code == INTERRUPTED:
        typer.echo("stopped; run the same command again to go on", err=True)
        return 1
    return code if isinstance(code, int) else 0


def help_width() -> int:
    """Return the width of help texts; click's own is never below 50, which breaks lines twice in narrow terminals."""
    return max(30, min(80, shutil.get_terminal_size().columns) - 2)


def _usage_message(problem: Any) -> str:
    path = getattr(getattr(problem, "ctx", None), "command_path", "harken")
    return f"{problem.format_message().rstrip('.')}; see `{path} --help`"


def _fail(message: str, code: int) -> int:
    """Print the one line that says what went wrong, and return the exit code."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return code
