"""API tokens: who a program is, what it may do, and until when."""

import secrets
import time
from dataclasses import dataclass

from sqlalchemy import select, update

from harken.errors import DataError
from harken.feedback.store.accounts import Person, Role, add_person, hash_password, read_person, token_hash
from harken.feedback.store.api_tables import api_tokens
from harken.feedback.store.audit import record, reference
from harken.feedback.store.connect import Database
from harken.feedback.store.projects import read_project
from harken.feedback.store.work_tables import people

PREFIX = "harken_"
"""Begins every token, so that scanners for leaked secrets can find one."""
MAX_DAYS = 366
_DAY_S = 86400.0
_SEEN_STEP_S = 60.0
"""A token's last use is written down at most this often."""


@dataclass(frozen=True)
class ApiToken:
    """A token as owners see it; the token itself is shown when it is made, and never again."""

    id: str
    name: str
    person: Person
    """The account that its requests act as."""
    project_id: str | None
    """The one project it opens; None for all."""
    created_at: float
    expires_at: float
    used_at: float | None
    is_revoked: bool

    @property
    def is_valid(self) -> bool:
        """Whether requests with it are let in."""
        return not self.is_revoked and not self.person.is_disabled and self.expires_at > time.time()


class Tokens:
    """API tokens of one store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def make(
        self, name: str, by: Person, *, role: Role = "annotator", days: int = 90, project_id: str | None = None,
        account_id: str | None = None,
    ) -> tuple[str, ApiToken]:  # fmt: skip
        """Make a token, and the account it acts as.

        Args:
            name: of the token, and of a new account.
            by: the owner who makes it.
            role: of a new account.
            days: until it expires, at most `MAX_DAYS`.
            project_id: the one project it opens; None for all.
            account_id: an account of an earlier token to go on with, in place of a new one; it keeps its role.

        Returns: the token, which the store does not keep, and what is kept of it.

        Raises:
            DataError: no such account or project, a name that is taken, or a bad number of days.
        """
        if not 1 <= days <= MAX_DAYS:
            raise DataError(f"a token is valid for 1 to {MAX_DAYS} days, found {days}")
        token = PREFIX + secrets.token_urlsafe(32)
        now = time.time()
        with self._database.writing(alone=True) as connection:
            if project_id is not None:
                read_project(connection, project_id)
            if account_id is None:
                # Nobody knows this password: programs come with tokens only.
                person = add_person(connection, name, role, hash_password(secrets.token_urlsafe(32)), is_service=True)
            else:
                found = connection.execute(select(people).where(people.c.id == account_id)).one_or_none()
                if found is None or not found.is_service:
                    raise DataError(f"{account_id!r} is no account of programs; choose one, or make a new one")
                person = read_person(found)
            made = ApiToken(
                id=secrets.token_hex(8), name=" ".join(name.split())[:80] or "token", person=person,
                project_id=project_id, created_at=now, expires_at=now + days * _DAY_S, used_at=None, is_revoked=False,
            )  # fmt: skip
            connection.execute(
                api_tokens.insert().values(
                    id=made.id, token_hash=token_hash(token), name=made.name, person_id=person.id,
                    project_id=project_id, created_by=by.id, created_at=made.created_at, expires_at=made.expires_at,
                )
            )  # fmt: skip
            facts = {"key": made.id, "change": "made", "role": person.role, "project": project_id or "all"}
            record(connection, "api_key", reference(connection, by.id), facts)
        return token, made

    def all(self) -> list[ApiToken]:
        """Return all tokens, newest first."""
        query = select(api_tokens).order_by(api_tokens.c.created_at.desc(), api_tokens.c.id)
        with self._database.reading() as connection:
            persons = {
                row.id: read_person(row)
                for row in connection.execute(select(people).where(people.c.is_service.is_(True)))
            }
            return [
                ApiToken(
                    id=row.id, name=row.name, person=persons[row.person_id], project_id=row.project_id,
                    created_at=row.created_at, expires_at=row.expires_at, used_at=row.used_at,
                    is_revoked=row.revoked_at is not None,
                )
                for row in connection.execute(query)
            ]  # fmt: skip

    def revoke(self, token_id: str, by: Person) -> None:
        """Make a token useless from now on.

        Raises:
            DataError: there is none of this id.
        """
        with self._database.writing() as connection:
            change = update(api_tokens).where(api_tokens.c.id == token_id, api_tokens.c.revoked_at.is_(None))
            if connection.execute(change.values(revoked_at=time.time())).rowcount:
                record(connection, "api_key", reference(connection, by.id), {"key": token_id, "change": "revoked"})
            elif connection.execute(select(api_tokens.c.id).where(api_tokens.c.id == token_id)).first() is None:
                raise DataError(f"there is no token {token_id!r}; reload the page")

    def open(self, token: str) -> tuple[Person, str | None] | None:
        """Return who a token acts as and the one project it opens (None: all); None for a token that is not valid."""
        now = time.time()
        query = (
            select(people, api_tokens.c.id.label("key"), api_tokens.c.project_id, api_tokens.c.used_at)
            .join(people, people.c.id == api_tokens.c.person_id)
            .where(
                api_tokens.c.token_hash == token_hash(token),
                api_tokens.c.revoked_at.is_(None),
                api_tokens.c.expires_at > now,
                people.c.disabled_at.is_(None),
            )
        )
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        if row.used_at is None or now - row.used_at > _SEEN_STEP_S:
            with self._database.writing() as connection:
                connection.execute(update(api_tokens).where(api_tokens.c.id == row.key).values(used_at=now))
        return read_person(row), row.project_id
