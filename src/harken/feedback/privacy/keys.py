"""Secret keys of a project: pseudonyms that only one export shares, and traces of erased people that name nobody.

A plain or seeded hash of a name can be undone by trying names; with a key that is not in the export it cannot. The keys
lie beside the store in a file that only its owner may read. Backups of the store need it: without it erased people
would not be known again.
"""

import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from harken.artifacts import first_problem, read_json, storage_errors, write_private
from harken.errors import DataError

ModelT = TypeVar("ModelT", bound=BaseModel)
_KEY_BYTES = 32
_DIGITS = 20
"""Hex digits of a pseudonym, 80 bits: among 10 million people two share one with probability 4e-11."""


class ProjectKey(BaseModel):
    """One key; exports name it by its id."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    key: str
    """Hex."""


class Keys(BaseModel):
    """All keys of a project; the last of `project` is in use, older ones belong to older exports."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: tuple[ProjectKey, ...]
    tombstones: str
    """Key of the traces of erased people, hex; never rotated, since the people cannot be asked again."""

    @property
    def newest(self) -> str:
        """Id of the key that new exports use."""
        return self.project[-1].id

    def pseudonym(self, person: str, scope: str, key_id: str | None = None) -> str:
        """Return a person's name in one scope; names of two scopes or two keys cannot be linked without the keys.

        Args:
            person: id in the store.
            scope: whom the export is for, any text.
            key_id: which key; None for the newest.

        Raises:
            DataError: there is no such key.
        """
        return f"p-{self._code('person', scope, person, key_id)}"

    def judgment_name(self, judgment: str, scope: str, key_id: str | None = None) -> str:
        """Return the name of a judgment in one scope: a name shared by two scopes would link the people."""
        return f"j-{self._code('judgment', scope, judgment, key_id)}"

    def tombstone(self, person: str) -> str:
        """Return the trace of an erased person: the same for the same name, and of no use without the key."""
        return _hmac(self.tombstones, "tombstone", "", person)

    def _code(self, purpose: str, scope: str, name: str, key_id: str | None) -> str:
        wanted = self.newest if key_id is None else key_id
        for key in self.project:
            if key.id == wanted:
                return _hmac(key.key, purpose, scope, name)[:_DIGITS]
        raise DataError(f"there is no key {wanted!r}; restore the file of keys that the export was made with")

    def rotated(self) -> "Keys":
        """Return keys with a new one in use; the old ones stay, to know old exports again."""
        return self.model_copy(update={"project": (*self.project, _new_key(len(self.project) + 1))})


class DemographicsKey(BaseModel):
    """The key that links what people said of themselves to them; a file of its own, for a role of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    """Hex."""

    def person_key(self, person: str) -> str:
        """Return the id under which a person's demographics are kept."""
        return _hmac(self.key, "demographics", "", person)[:32]


def keys_path(store: Path) -> Path:
    """Return where the keys of a store lie."""
    return store.with_name(f"{store.name}.keys.json")


def demographics_key_path(store: Path) -> Path:
    """Return where the key of a store's demographics lies."""
    return store.with_name(f"{store.name}.demographics.json")


def read_keys(path: Path, *, create: bool) -> Keys:
    """Read the keys of a project; make them first if there are none and `create` is set.

    Raises:
        DataError: there is no file and none may be made, it is not one of keys, or others may read it.
        StorageError: it cannot be written.
    """
    if create and not path.exists():
        _write_new(path, Keys(project=(_new_key(1),), tombstones=secrets.token_hex(_KEY_BYTES)))
    return _read(path, Keys)


def read_demographics_key(path: Path, *, create: bool) -> DemographicsKey:
    """Read the key of the demographics, as `read_keys` does."""
    if create and not path.exists():
        _write_new(path, DemographicsKey(key=secrets.token_hex(_KEY_BYTES)))
    return _read(path, DemographicsKey)


def stored_demographics_key(store: Path) -> DemographicsKey | None:
    """Return the key of a store's demographics, or None where none were ever recorded here."""
    path = demographics_key_path(store)
    return read_demographics_key(path, create=False) if path.exists() else None


def _read(path: Path, model: type[ModelT]) -> ModelT:
    if not path.exists():
        raise DataError(f"{path}: the keys of this store are missing; restore them from the backup of the store")
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise DataError(f"{path}: others may read these keys; run: chmod 600 {path}")
    try:
        return model.model_validate(read_json(path))
    except ValidationError as error:
        raise DataError(f"{path}: not a file of keys: {first_problem(error)}; restore it from a backup") from error


def rotate_keys(path: Path) -> Keys:
    """Put a new key in use and return all; exports made from now on cannot be linked to older ones.

    Raises:
        DataError: the file cannot be used.
        StorageError: it cannot be written.
    """
    keys = read_keys(path, create=True).rotated()
    temporary = path.with_name(f".{path.name}.new")
    with storage_errors(path):
        temporary.unlink(missing_ok=True)
        _write_new(temporary, keys)
        os.replace(temporary, path)
    return keys


def _write_new(path: Path, keys: BaseModel) -> None:
    write_private(path, keys.model_dump_json(indent=2) + "\n")


def _new_key(number: int) -> ProjectKey:
    return ProjectKey(id=f"key-{number}", key=secrets.token_hex(_KEY_BYTES))


def _hmac(key: str, *parts: str) -> str:
    # JSON, so that ("a", "bc") and ("ab", "c") are different messages.
    return hmac.new(bytes.fromhex(key), json.dumps(parts).encode(), hashlib.sha256).hexdigest()
