"""Accounts: people and roles, passwords, sessions, invitations, and counters that limit how often something happens."""

import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import Any, Literal

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError
from sqlalchemy import Connection, Row, bindparam, delete, func, select, text, update

from harken.errors import DataError
from harken.feedback.store.audit import record, reference
from harken.feedback.store.connect import Database
from harken.feedback.store.work_tables import invitations, people, rate_counts, sessions

Role = Literal["owner", "reviewer", "annotator"]

SESSION_IDLE_S = 12 * 3600.0
SESSION_MAX_S = 7 * 86400.0
INVITATION_S = 7 * 86400.0
MIN_PASSWORD = 10
MAX_PASSWORD = 1000
_SEEN_STEP_S = 60.0
"""A session's last use is written down at most this often, so that reading pages writes little."""
_HASHER = PasswordHasher()
# Written once: every request asks these.
_OF_SESSION = (
    select(people, sessions.c.seen_at)
    .join(sessions, sessions.c.person_id == people.c.id)
    .where(
        sessions.c.token_hash == bindparam("_key"),
        sessions.c.seen_at >= bindparam("_idle"),
        sessions.c.created_at >= bindparam("_oldest"),
        people.c.disabled_at.is_(None),
    )
)
_COUNT = text(
    "INSERT INTO rate_counts (name, bucket, expires_at, count) VALUES (:name, :bucket, :expires_at, 1) "
    "ON CONFLICT (name, bucket) DO UPDATE SET count = rate_counts.count + 1 RETURNING count"
)


@dataclass(frozen=True)
class Person:
    """Somebody with an account."""

    id: str
    """Random; the judge id of their judgments."""
    name: str
    role: Role
    is_disabled: bool = False
    is_service: bool = False
    """An account of programs, which nobody logs in to."""


def token_hash(token: str) -> str:
    """Return what the store keeps of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


class Accounts:
    """People of one store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def has_owner(self) -> bool:
        """Tell whether the first account has been made."""
        with self._database.reading() as connection:
            return _count_owners(connection) > 0

    def first_invitation(self) -> str:
        """Return the token of a fresh invitation for the first owner; earlier ones stop working."""
        with self._database.writing() as connection:
            connection.execute(delete(invitations).where(invitations.c.created_by.is_(None)))
            return _invite(connection, "owner", None)

    def invite(self, role: Role, by: Person) -> str:
        """Return the token of an invitation that one person can use within a week."""
        with self._database.writing() as connection:
            record(connection, "invite", reference(connection, by.id), {"role": role})
            return _invite(connection, role, by.id)

    def invited_role(self, token: str) -> Role | None:
        """Return the role an invitation gives, or None where it is unknown, used or too old."""
        with self._database.reading() as connection:
            row = connection.execute(_valid_invitation(token)).one_or_none()
            return row.role if row else None

    def join(self, token: str, name: str, password: str) -> Person:
        """Make the account that an invitation is for.

        Raises:
            DataError: the invitation is not valid any more, the name is taken, or name or password cannot be used.
        """
        hashed = hash_password(password)
        with self._database.writing() as connection:
            query = _valid_invitation(token).with_for_update()
            invitation = connection.execute(query).one_or_none()
            if invitation is None:
                raise DataError("this invitation was used already or is too old; ask for a new one")
            person = add_person(connection, name, invitation.role, hashed)
            connection.execute(
                update(invitations).where(invitations.c.token_hash == token_hash(token)).values(used_by=person.id)
            )
            record(connection, "join", reference(connection, person.id), {"role": person.role})
        return person

    def check_password(self, name: str, password: str) -> Person | None:
        """Return the person, or None for an unknown name, a wrong password or a closed account, in equal time."""
        with self._database.reading() as connection:
            row = connection.execute(
                select(people).where(people.c.folded_name == name.strip().casefold())
            ).one_or_none()
        if row is None:
            # As much work as a check, so that the time a refusal takes does not tell which names there are.
            _HASHER.hash(password[:MAX_PASSWORD])
            return None
        try:
            _HASHER.verify(row.password_hash, password[:MAX_PASSWORD])
        except VerificationError:
            return None
        if row.disabled_at is not None or row.is_service:
            return None
        if _HASHER.check_needs_rehash(row.password_hash):
            with self._database.writing() as connection:
                fresh = _HASHER.hash(password)
                connection.execute(update(people).where(people.c.id == row.id).values(password_hash=fresh))
        return read_person(row)

    def set_password(self, person: Person, password: str) -> None:
        """Change a password and end all sessions of the person."""
        hashed = hash_password(password)
        with self._database.writing() as connection:
            connection.execute(update(people).where(people.c.id == person.id).values(password_hash=hashed))
            connection.execute(delete(sessions).where(sessions.c.person_id == person.id))
            record(connection, "password", reference(connection, person.id), {})

    def log_in(self, person: Person) -> str:
        """Start a session and return its token; sessions that are too old are swept out."""
        token = secrets.token_urlsafe(32)
        now = time.time()
        with self._database.writing() as connection:
            connection.execute(
                delete(sessions).where(
                    (sessions.c.seen_at < now - SESSION_IDLE_S) | (sessions.c.created_at < now - SESSION_MAX_S)
                )
            )
            connection.execute(
                sessions.insert().values(token_hash=token_hash(token), person_id=person.id, created_at=now, seen_at=now)
            )
            record(connection, "login", reference(connection, person.id), {})
        return token

    def person_of_session(self, token: str) -> Person | None:
        """Return who a session belongs to, or None where it is unknown or has ended."""
        now = time.time()
        key = token_hash(token)
        with self._database.reading() as connection:
            values = {"_key": key, "_idle": now - SESSION_IDLE_S, "_oldest": now - SESSION_MAX_S}
            row = connection.execute(_OF_SESSION, values).one_or_none()
        if row is None:
            return None
        if now - row.seen_at > _SEEN_STEP_S:
            with self._database.writing(durable=False) as connection:
                connection.execute(update(sessions).where(sessions.c.token_hash == key).values(seen_at=now))
        return read_person(row)

    def log_out(self, token: str) -> None:
        """End one session."""
        with self._database.writing() as connection:
            connection.execute(delete(sessions).where(sessions.c.token_hash == token_hash(token)))

    def log_out_everywhere(self, person: Person) -> None:
        """End all sessions of a person."""
        with self._database.writing() as connection:
            connection.execute(delete(sessions).where(sessions.c.person_id == person.id))
            record(connection, "logout", reference(connection, person.id), {})

    def everyone(self) -> list[Person]:
        """Return all people by name."""
        with self._database.reading() as connection:
            return [read_person(row) for row in connection.execute(select(people).order_by(people.c.folded_name))]

    def change(self, person_id: str, by: Person, *, role: Role, disabled: bool) -> None:
        """Give a person another role, or close or open their account; their sessions end.

        Raises:
            DataError: nobody has this id, or no owner would be left.
        """
        with self._database.writing(alone=True) as connection:
            if connection.execute(select(people.c.id).where(people.c.id == person_id)).first() is None:
                raise DataError(f"nobody has the id {person_id!r}; reload the page")
            disabled_at = time.time() if disabled else None
            connection.execute(
                update(people).where(people.c.id == person_id).values(role=role, disabled_at=disabled_at)
            )
            if _count_owners(connection) == 0:
                raise DataError("no owner would be left; make somebody else an owner first")
            connection.execute(delete(sessions).where(sessions.c.person_id == person_id))
            facts = {"person": reference(connection, person_id), "role": role, "closed": int(disabled)}
            record(connection, "role", reference(connection, by.id), facts)

    def count(self, name: str, window_s: int) -> tuple[int, float]:
        """Count one more of something in the present window; holds across server processes.

        Args:
            name: what is counted, for whom.
            window_s: length of a window in seconds.

        Returns: the count, this one included, and the seconds until the next window.
        """
        now = time.time()
        bucket = int(now // window_s)
        ends = (bucket + 1) * float(window_s)
        with self._database.writing(durable=False) as connection:
            values = {"name": name, "bucket": bucket, "expires_at": ends}
            count = connection.execute(_COUNT, values).scalar_one()
            if count == 1:
                connection.execute(delete(rate_counts).where(rate_counts.c.expires_at < now - window_s))
        return count, ends - now


def hash_password(password: str) -> str:
    """Return the argon2id hash of a password.

    Raises:
        DataError: it is too short or too long.
    """
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise DataError(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters, found {len(password)}")
    return _HASHER.hash(password)


def add_person(connection: Connection, name: str, role: Role, hashed: str, *, is_service: bool = False) -> Person:
    """Make an account.

    Args:
        connection: in a write transaction.
        name: what others see.
        role: what it may do.
        hashed: of the password.
        is_service: it is for programs, which come with tokens.

    Raises:
        DataError: the name is taken or cannot be used.
    """
    name = " ".join(name.split())
    if not 1 <= len(name) <= 80 or not name.isprintable():
        raise DataError("a name has 1 to 80 printable characters")
    if connection.execute(select(people.c.id).where(people.c.folded_name == name.casefold())).first():
        raise DataError(f"the name {name!r} is taken; choose another one")
    person = Person(secrets.token_hex(8), name, role, is_service=is_service)
    values = {"id": person.id, "name": name, "folded_name": name.casefold(), "role": role, "is_service": is_service}
    connection.execute(people.insert().values(**values, password_hash=hashed, created_at=time.time()))
    return person


def _count_owners(connection: Connection) -> int:
    """Count who could let others in; programs cannot."""
    query = select(func.count()).where(
        people.c.role == "owner", people.c.disabled_at.is_(None), people.c.is_service.is_(False)
    )
    return connection.execute(query).scalar_one()


def _invite(connection: Connection, role: Role, by: str | None) -> str:
    token = secrets.token_urlsafe(32)
    now = time.time()
    connection.execute(
        invitations.insert().values(
            token_hash=token_hash(token), role=role, created_by=by, created_at=now, expires_at=now + INVITATION_S
        )
    )
    return token


def _valid_invitation(token: str) -> Any:
    return select(invitations).where(
        invitations.c.token_hash == token_hash(token),
        invitations.c.used_by.is_(None),
        invitations.c.expires_at >= time.time(),
    )


def read_person(row: Row[Any]) -> Person:
    """Return the person of a row of `people`."""
    return Person(row.id, row.name, row.role, row.disabled_at is not None, row.is_service)
