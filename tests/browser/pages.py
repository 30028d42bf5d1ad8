"""All pages of the app, filled: for tests that look at every one of them."""

import re
from typing import Any

from harken.config.base import build
from harken.config.project import ProjectConfig
from harken.feedback.store import audit, people
from harken.feedback.tasks import TaskLine
from tests.browser.robot import AXES
from tests.browser.server import Server
from tests.feedback.routes import ROLES, pages_for
from tests.feedback.working import SOURCE, Workshop, win

KINDS: dict[str, dict[str, Any]] = {
    "comparison": {},
    "ranking": {},
    "rating": {"axes": AXES},
    "turns": {"axes": AXES, "scope": "turns"},
    "conversation": {"axes": AXES, "scope": "conversation"},
    "spans": {},
    "correction": {},
    "demonstration": {},
    "critique": {},
}
"""Name -> options; `turns` and `conversation` are ratings."""
_COUNTS = {"comparison": 2, "ranking": 3, "demonstration": 0}


def kind_of(name: str) -> str:
    """The kind of task behind a name of `KINDS`."""
    return "rating" if name in ("turns", "conversation") else name


def make_project(work: Workshop, name: str, texts: list[str], said: dict[str, Any] | None = None) -> str:
    """Make a project of a kind with one task of these texts: its prompt's turns first, then its completions."""
    said = said or {}
    task = {"kind": kind_of(name), **KINDS[name], **said.get("task", {})}
    settings = build(ProjectConfig, {"task": task}, where="test")
    title = f"{said.get('name', name)} {len(work.projects.all())}"
    made = work.projects.make(title, settings, guideline=said.get("guideline", "Be *fair*."))
    messages = [
        {"role": role, "content": texts[place % len(texts)]}
        for place, role in enumerate(("system", "user", "assistant", "user"))
    ]
    completions = [f"{text}\n\n{place}" for place, text in enumerate((texts * 9)[: _COUNTS.get(kind_of(name), 1)])]
    line = TaskLine.model_validate({"prompt": messages, "completions": completions})
    work.projects.add_tasks(made.id, [line], SOURCE)
    return made.id


def fill(server: Server, texts: list[str], said: dict[str, Any] | None = None) -> dict[str, str]:
    """Make a project of each kind, a judgment and a consent text; return name -> path of all pages of the owner."""
    with server.work() as work:
        olga = next(one for one in work.accounts.everyone() if one.role == "owner")
        projects = {name: make_project(work, name, texts, said) for name in KINDS}
        leases = {name: work.leases.claim(project, olga.id) for name, project in projects.items()}
        token = work.accounts.invite("annotator", olga)
        judged = make_project(work, "comparison", texts, said)
        lease = work.leases.claim(judged, olga.id)
        reasons = texts[0][:1000]
        work.leases.submit(lease.id, olga.id, win(lease, rationale=reasons))
        with work.store.database.writing() as connection:
            text, version = (said or {}).get("guideline", "We *ask* you."), token[:8]
            asked = people.publish_consent_text(connection, "participation", version, text, actor=audit.COMMAND_LINE)
            people.give_consent(connection, olga.id, asked)
    values = {"project_id": judged, "lease_id": lease.id, "person_id": olga.id, "token": token}
    paths = sorted(path for who in ("open", *ROLES) for path in pages_for(who) if not path.endswith(".json"))
    missing = {name for path in paths for name in re.findall(r"{(\w+)}", path)} - {*values}
    assert not missing, f"give a value for {missing} of a new page in tests/browser/pages.py"
    pages = {path: re.sub(r"{(\w+)}", lambda found: values[found.group(1)], path) for path in paths}
    pages |= {name: f"/tasks/{lease.id}" for name, lease in leases.items()}
    return pages | {"project with notice": f"/projects/{judged}?why=empty", "no such page": "/none"}
