"""The groups of commands `harken collect` and `harken data`."""

import typer

from harken.cli_backup import backup, restore
from harken.cli_collect import agreement, export, import_feedback, status
from harken.cli_common import examples
from harken.cli_data import check, convert
from harken.cli_models import judge, sample
from harken.cli_people import (
    consent,
    demographics,
    erase_person,
    retain,
    rotate_key,
    self_export,
    verify_audit,
    withdraw,
)
from harken.cli_tasks import tasks

collect_app = typer.Typer(
    help="Judgments in and out of a feedback store.",
    epilog=examples("harken collect import --store sqlite:///f.db reviews:movie"),
    rich_markup_mode=None,
)

data_app = typer.Typer(
    help="What data files hold, and other formats.",
    epilog=examples("harken data check pairs.jsonl"),
    rich_markup_mode=None,
)

collect_app.command(
    "import",
    epilog=examples(
        "harken collect import --store sqlite:///f.db reviews:movie",
        "harken collect import --store sqlite:///f.db out/export",
        "harken collect import --store sqlite:///f.db --format csv \\",
        "    --map completion_a=first --map completion_b=second votes.csv",
        "harken collect import --store sqlite:///f.db --redact \\",
        "    --license 'CC BY 4.0' out/export",
    ),
)(import_feedback)
collect_app.command(
    epilog=examples(
        "harken collect tasks --store sqlite:///f.db --project first \\",
        "    tasks.jsonl --set overlap=3 --guideline guideline.md",
        "harken collect tasks --store sqlite:///f.db --project second \\",
        "    --prompts p.jsonl c.jsonl --set task.kind=ranking",
    )
)(tasks)
collect_app.command(
    epilog=examples(
        "harken collect sample --store sqlite:///f.db --project first \\",
        "    --model out/sft --model out/ppo --prompts p.jsonl \\",
        "    --reward out/reward-1 --reward out/reward-2 --tasks 100",
        "harken collect sample --store sqlite:///f.db --project first \\",
        "    --model http://localhost:8000/v1#my-model --prompts p.txt --n 4",
    )
)(sample)
collect_app.command(
    epilog=examples(
        "harken collect judge --store sqlite:///f.db --judge lexicon",
        "harken collect judge --store sqlite:///f.db --project first \\",
        "    --judge http://localhost:8000/v1#my-model --criteria rules.md",
    )
)(judge)
collect_app.command(
    epilog=examples(
        "harken collect export --store sqlite:///f.db --out out/export",
        "harken collect export --store sqlite:///f.db --out out/public \\",
        "    --scope public",
        "harken collect export --store sqlite:///f.db \\",
        "    --format trl-preference --out pairs.jsonl --accept-loss",
    )
)(export)
collect_app.command(epilog=examples("harken collect status --store sqlite:///f.db"))(status)
collect_app.command(
    epilog=examples(
        "harken collect agreement --store sqlite:///f.db",
        "harken collect agreement --store sqlite:///f.db --json",
        "harken collect agreement --store sqlite:///f.db \\",
        "    --gold gold.jsonl --groups groups.json",
    )
)(agreement)
collect_app.command(epilog=examples("harken collect consent --store sqlite:///f.db --version 1 consent.txt"))(consent)
collect_app.command(epilog=examples("harken collect demographics --store sqlite:///f.db people.jsonl"))(demographics)
collect_app.command(
    epilog=examples(
        "harken collect withdraw --store sqlite:///f.db --person p17",
        "harken collect withdraw --store sqlite:///f.db --person p17 \\",
        "    --purpose demographics",
    )
)(withdraw)
collect_app.command(
    "self-export",
    epilog=examples(
        "harken collect self-export --store sqlite:///f.db --person p17 \\",
        "    --out p17.json",
    ),
)(self_export)
collect_app.command(
    "erase-person",
    epilog=examples(
        "harken collect erase-person --store sqlite:///f.db --person p17",
        "harken collect erase-person --store sqlite:///f.db --person p17 \\",
        "    --judgments anonymize --runs out --yes",
    ),
)(erase_person)
collect_app.command(epilog=examples("harken collect retain --store sqlite:///f.db --keep drafts=30"))(retain)
collect_app.command("rotate-key", epilog=examples("harken collect rotate-key --store sqlite:///f.db"))(rotate_key)
collect_app.command(
    "verify-audit",
    epilog=examples(
        "harken collect verify-audit --store sqlite:///f.db",
        "harken collect verify-audit --store sqlite:///f.db --entries",
    ),
)(verify_audit)
collect_app.command(epilog=examples("harken collect backup --store sqlite:///f.db --out f.backup.gz"))(backup)
collect_app.command(epilog=examples("harken collect restore --store postgresql:///f f.backup.gz"))(restore)
data_app.command(
    epilog=examples(
        "harken data check pairs.jsonl",
        "harken data check train.jsonl.gz test.jsonl.gz --json",
        "harken data check hub:owner/name#train --model smollm2",
    )
)(check)
data_app.command(
    epilog=examples(
        "harken data convert hh.jsonl.gz --to trl-preference --out pairs.jsonl",
        "harken data convert out/export --to csv --out votes.csv --accept-loss",
    )
)(convert)
