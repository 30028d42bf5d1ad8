"""Commands for people's rights: consent, withdrawal, own copy, erasure, retention, keys, audit log. No torch."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harken.cli_common import JsonOption, StoreOption, show, show_json, table

if TYPE_CHECKING:
    from harken.feedback.store.erase import Erasure

PersonOption = Annotated[str, typer.Option("--person", metavar="ID", help="The person's id in the store.")]


class ConsentPurpose(StrEnum):
    """What people are asked to agree to."""

    participation = "participation"
    demographics = "demographics"


class Judgments(StrEnum):
    """What becomes of an erased person's judgments."""

    delete = "delete"
    anonymize = "anonymize"


PurposeOption = Annotated[
    ConsentPurpose, typer.Option("--purpose", metavar="PURPOSE", help="participation or demographics.")
]


def consent(
    text: Annotated[Path, typer.Argument(metavar="FILE", help="Text that people are asked to agree to, in UTF-8.")],
    store: StoreOption,
    version: Annotated[str, typer.Option("--version", metavar="NAME", help="Name of this version, such as 2026-03.")],
    purpose: PurposeOption = ConsentPurpose.participation,
    locale: Annotated[str, typer.Option("--locale", metavar="LANG", help="Language of the text.")] = "en",
) -> None:
    """Publish a version of a consent text. Everyone is asked again when the newest version is another."""
    from harken.artifacts import read_text
    from harken.feedback.store import FeedbackStore, audit, people

    words = read_text(text)
    with FeedbackStore.open(store) as opened, opened.database.writing() as connection:
        published = people.publish_consent_text(
            connection, purpose.value, version, words, actor=audit.COMMAND_LINE, locale=locale
        )
    show(f"{purpose.value} {version} ({locale}): sha256 {published.sha256}")


def demographics(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help='JSON Lines: {"person": ID, "values": {"age": "30-39"}}.')
    ],
    store: StoreOption,
) -> None:
    """Record what people said of themselves, in place of what they said before.

    It is kept apart from them: under a keyed hash whose key lies in a file of its own (STORE.demographics.json). Only
    counts of groups are ever published: harken report --datasheet.
    """
    from harken.artifacts import iterate_records
    from harken.feedback.privacy.keys import demographics_key_path, read_demographics_key
    from harken.feedback.store import FeedbackStore, audit, people

    with FeedbackStore.open(store, create=False) as opened:
        key = read_demographics_key(demographics_key_path(opened.secrets), create=True)
        with opened.database.writing() as connection:
            rows = list(iterate_records(path, people.Attributes))
            for row in rows:
                people.set_demographics(connection, row.person, row.values, key)
            audit.record(connection, "demographics", audit.COMMAND_LINE, {"num_people": len(rows)})
    show(f"recorded for {len(rows)} people")


def withdraw(store: StoreOption, person: PersonOption, purpose: PurposeOption = ConsentPurpose.participation) -> None:
    """Take back a person's consent.

    Of participation: their judgments stay in the store and out of every export from now on. Of demographics: what they
    said of themselves is deleted, their judgments stay as they are.
    """
    from harken.feedback.privacy.keys import stored_demographics_key
    from harken.feedback.store import FeedbackStore, audit, people

    with FeedbackStore.open(store, create=False) as opened, opened.database.writing() as connection:
        key = stored_demographics_key(opened.secrets)
        count = people.withdraw(connection, person, purpose.value, key, actor=audit.COMMAND_LINE)
    show(f"{count} {'judgments out of further exports' if purpose == 'participation' else 'attributes deleted'}")


def self_export(
    store: StoreOption,
    person: PersonOption,
    out: Annotated[Path, typer.Option("--out", metavar="F", help="JSON file to write.")],
) -> None:
    """Write everything the store holds about one person, and nothing about anyone else."""
    from harken.artifacts import write_json
    from harken.feedback.privacy.keys import stored_demographics_key
    from harken.feedback.store import FeedbackStore, audit, people

    with FeedbackStore.open(store, create=False) as opened, opened.database.writing() as connection:
        found = people.own_data(connection, person, stored_demographics_key(opened.secrets), actor=audit.COMMAND_LINE)
        write_json(out, found)
    show(f"{out}: " + ", ".join(f"{len(rows)} {name}" for name, rows in found.items()))


def erase_person(
    store: StoreOption,
    person: PersonOption,
    judgments: Annotated[
        Judgments,
        typer.Option("--judgments", metavar="WHAT", help="delete them, or anonymize: keep what was chosen, no words."),
    ] = Judgments.delete,
    runs: Annotated[
        list[Path] | None,
        typer.Option("--runs", metavar="DIR", help="Folder with runs or copies of exports; may be given many times."),
    ] = None,
    is_sure: Annotated[
        bool, typer.Option("--yes", help="Do it; without this the command only says what it would do.")
    ] = (False),
    as_json: JsonOption = False,
) -> None:
    """Erase a person from the store and from its exports, and list what was made of their judgments.

    The database file is written anew. A trace that names nobody stays, so that importing an old export does not bring
    the person back. Models cannot forget: those that were trained on the judgments are listed, to be made anew.
    """
    from harken.feedback.privacy.keys import keys_path, read_keys, stored_demographics_key
    from harken.feedback.store import FeedbackStore, audit
    from harken.feedback.store.erase import Erasing, plan

    with FeedbackStore.open(store, create=False) as opened:
        keys = read_keys(keys_path(opened.secrets), create=True)
        request = Erasing(person, judgments.value, keys, stored_demographics_key(opened.secrets), tuple(runs or ()))
        if is_sure:
            found = opened.erase(request, actor=audit.COMMAND_LINE)
        else:
            with opened.database.reading() as connection:
                found = plan(connection, request)
    if as_json:
        show_json(found.model_dump(mode="json"))
    else:
        show(_erasure_text(found))
    if found.still_found_in:
        raise typer.Exit(1)


def _erasure_text(found: "Erasure") -> str:
    lines = ["erased:" if found.done else "would be erased (nothing was changed; --yes does it):"]
    lines += [f"  {count} rows of {name}" for name, count in found.rows.items()]
    lines += [f"  {one.num_judgments} judgments in {one.folder}" for one in found.exports]
    if found.made:
        lines += ["made of these judgments; to forget them, make anew:"]
        lines += [f"  {one.kind}: {one.path}" for one in found.made]
    if found.missing_exports:
        lines += ["exports that are not where they were written; look for copies, and give them with --runs:"]
        lines += [f"  {folder}" for folder in found.missing_exports]
    if found.still_found_in:
        lines += ["the id still stands in these files (in a text, perhaps):"]
        lines += [f"  {path}" for path in found.still_found_in]
    elif found.is_scanned:
        lines += ["searched the store's files and the exports byte by byte: no trace of the id"]
    elif found.done:
        lines += ["the id is too short to search files for it"]
    return "\n".join(lines)


def retain(
    store: StoreOption,
    keep: Annotated[
        list[str], typer.Option("--keep", metavar="KIND=DAYS", help="Delete what is older; may be given many times.")
    ],
) -> None:
    """Delete what is no longer needed, by age: drafts, sessions, invitations, counters. Judgments never expire."""
    import datetime

    from harken.errors import UsageError
    from harken.feedback.store import FeedbackStore, audit
    from harken.feedback.store.retention import delete_expired

    days: dict[str, float] = {}
    for item in keep:
        kind, _, number = item.partition("=")
        try:
            days[kind] = float(number)
        except ValueError as error:
            raise UsageError(f"--keep {item}: expected KIND=DAYS, such as drafts=30") from error
    with FeedbackStore.open(store, create=False) as opened, opened.database.writing() as connection:
        now = datetime.datetime.now(datetime.UTC)
        deleted = delete_expired(connection, days, now, actor=audit.COMMAND_LINE)
    show("deleted: " + ", ".join(f"{count} {kind}" for kind, count in deleted.items()))


def rotate_key(store: StoreOption) -> None:
    """Put a new key in use: pseudonyms of exports from now on cannot be linked to those of older ones."""
    from harken.feedback.privacy.keys import keys_path, rotate_keys
    from harken.feedback.store import FeedbackStore, audit

    with FeedbackStore.open(store, create=False) as opened, opened.database.writing() as connection:
        keys = rotate_keys(keys_path(opened.secrets))
        audit.record(connection, "keys", audit.COMMAND_LINE, {"key_id": keys.newest})
    show(f"in use: {keys.newest}; keep {keys_path(opened.secrets)} with every backup of the store")


def verify_audit(
    store: StoreOption,
    head: Annotated[
        str | None, typer.Option("--head", metavar="HASH", help="A hash noted earlier, which the log must still hold.")
    ] = None,
    entries: Annotated[bool, typer.Option("--entries", help="Show all entries.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check that the audit log was not changed: every entry holds the hash of the one before.

    Note the head that is printed somewhere else. Given with --head it shows later that nothing was cut off at the end.
    """
    from harken.feedback.store import FeedbackStore, audit

    with FeedbackStore.open(store, create=False) as opened, opened.database.reading() as connection:
        state = audit.verify(connection, head)
        listed = audit.entries(connection) if entries else []
    if as_json:
        show_json({**state.model_dump(), **({"entries": [one.model_dump() for one in listed]} if entries else {})})
        return
    for one in listed:
        facts = ", ".join(f"{key} {value}" for key, value in one.facts.items())
        show(f"{one.seq}  {one.created_at}  {one.actor}  {one.action}  {facts}")
    show(table([["entries", str(state.num_entries)], ["head", state.head]]))
