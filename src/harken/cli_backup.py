"""Commands for backups: `harken collect backup | restore`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harken.cli_common import JsonOption, StoreOption, reporter, show, show_json, table

if TYPE_CHECKING:
    from harken.feedback.store.backup import BackupSummary


def backup(
    store: StoreOption,
    out: Annotated[Path, typer.Option("--out", metavar="F", help="File to write, such as feedback.backup.gz.")],
    as_json: JsonOption = False,
) -> None:
    """Write everything in a store to one file, while people go on working.

    The file is read back and checked before it gets its name; one that is there is never replaced. It holds all that
    people said and their names: keep it as safe as the store. The secrets that lie beside the store are not in it.
    """
    from harken.feedback.privacy.keys import keys_path
    from harken.feedback.store import FeedbackStore
    from harken.feedback.store.backup import write_backup

    with FeedbackStore.open(store, create=False) as opened:
        summary = write_backup(opened.database, out)
        keys = keys_path(opened.secrets)
    _tell(summary, as_json=as_json)
    if keys.exists():
        reporter().say(f"keep {keys} with it: pseudonyms of exports and traces of erased people need these keys")


def restore(
    path: Annotated[Path, typer.Argument(metavar="F", help="File that `harken collect backup` wrote.")],
    store: StoreOption,
    as_json: JsonOption = False,
) -> None:
    """Make a store from a backup: on either database, whichever the backup is from.

    The store must not be there yet, or be empty. All of the backup is restored and compared with it, or nothing is.
    """
    from harken.feedback.store import FeedbackStore
    from harken.feedback.store.backup import restore_backup

    with FeedbackStore.open(store) as opened:
        summary = restore_backup(path, opened.database)
    _tell(summary, as_json=as_json)


def _tell(summary: "BackupSummary", *, as_json: bool) -> None:
    if as_json:
        show_json(summary.model_dump())
        return
    counted = ("prompts", "completions", "judgments", "people", "tasks", "leases")
    rows = [
        ["taken", summary.created_at],
        *([name, str(summary.rows[name])] for name in counted if name in summary.rows),
    ]
    rows += [["audit entries", str(summary.audit_entries)], ["audit head", summary.audit_head or "-"]]
    show(table([*rows, ["sha256", summary.sha256]]))
