"""Every setting of a project can be made in the web app; those about giving out work can be changed there."""

from typing import Any

import pytest

from harken.config.project import ProjectConfig
from tests.feedback.web_client import House, post

WORK = {
    "overlap": "3",
    "rationale": "required",
    "access": "members",
    "lease_minutes": "7.5",
    "max_tasks": "40",
    "max_tasks_a_day": "9",
    "qualification_tasks": "5",
    "qualification_percent": "60",
    "sensitive_tags": "violence, self-harm",
    "break_minutes": "45",
}
GIVEN_OUT = {
    "overlap": 3,
    "rationale": "required",
    "access": "members",
    "lease_minutes": 7.5,
    "max_tasks": 40,
    "max_tasks_a_day": 9,
    "qualification": {"num_tasks": 5, "accuracy": 0.6},
    "sensitive_tags": ("violence", "self-harm"),
    "break_minutes": 45,
}
SCALES = "true, kind\nsafe | 0 | 3 | harmful | harmless\nshort | 1 | 2"
# Kind: the fields that are its own, and what they set.
KINDS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "comparison": ({"strengths": "no", "tie": "no"}, {"strengths": False, "tie": False}),
    "ranking": ({"ties": "no"}, {"ties": False}),
    "rating": (
        {"scope": "turns", "axes": SCALES},
        {
            "scope": "turns",
            "axes": [
                {"name": "true"},
                {"name": "kind"},
                {"name": "safe", "low": 0, "high": 3, "low_label": "harmful", "high_label": "harmless"},
                {"name": "short", "low": 1, "high": 2},
            ],
        },
    ),
    "spans": ({"labels": "rude, wrong"}, {"labels": ["rude", "wrong"]}),
    "correction": ({}, {}),
    "demonstration": ({}, {}),
    "critique": ({}, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_of_a_project_is_in_the_form(house: House, kind: str) -> None:
    olga = house.logged_in("Olga")
    own, expected = KINDS[kind]
    fields = {"name": "One", "kind": kind, "question": "Well?", **own, **WORK}
    assert post(olga, "/manage/projects", fields).status_code == 303
    (project,) = house.work.projects.all()
    task = {"kind": kind, "question": "Well?", **expected}
    assert project.config == ProjectConfig.model_validate({"task": task, **GIVEN_OUT})
    # A setting that is added later has to come into the form as well.
    given = set(task) | {name for name in GIVEN_OUT if getattr(project.config, name) is not None}
    assert given == {*type(project.config.task).model_fields, *ProjectConfig.model_fields} - {"task"}
    page = olga.get("/manage").text
    assert all(f'name="{name}"' in page for name in fields)


def test_an_empty_form_makes_a_project_with_the_usual_settings(house: House) -> None:
    olga = house.logged_in("Olga")
    for kind in KINDS:
        assert post(olga, "/manage/projects", {"name": kind, "kind": kind}).status_code == 303
        project = house.work.projects.named(kind)
        assert project is not None
        assert project.config == ProjectConfig.model_validate({"task": {"kind": kind}})


def test_how_work_is_given_out_can_be_changed_and_what_is_asked_cannot(house: House) -> None:
    olga = house.logged_in("Olga")
    project = house.work.project(num_tasks=1)
    path = f"/manage/projects/{project.id}"
    assert post(olga, f"{path}/settings", {**WORK, "question": "Other?", "kind": "critique"}).status_code == 303
    changed = house.work.projects.get(project.id).config
    assert changed == ProjectConfig.model_validate({"task": project.config.task.model_dump(), **GIVEN_OUT})
    page = olga.get(path).text
    assert 'value="60"' in page
    assert 'value="members" selected' in page
    # Emptied again.
    assert post(olga, f"{path}/settings", {"overlap": "1"}).status_code == 303
    assert house.work.projects.get(project.id).config == project.config


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("max_tasks", "0", "max_tasks"),
        ("overlap", "many", "overlap"),
        ("qualification_percent", "most", "percent, such as 80"),
        ("qualification_percent", "120", "accuracy"),
        ("access", "nobody", "access"),
    ],
)
def test_a_bad_setting_is_named_and_the_rest_stays_in_the_form(house: House, field: str, value: str, said: str) -> None:
    olga = house.logged_in("Olga")
    project = house.work.project(num_tasks=1)
    bad = {**WORK, field: value}
    for path, more in (("/manage/projects", {"name": "One"}), (f"/manage/projects/{project.id}/settings", {})):
        answer = post(olga, path, {**bad, **more})
        assert answer.status_code == 422
        assert said in answer.text
        assert 'value="7.5"' in answer.text
    assert house.work.projects.get(project.id).config == project.config
    assert len(house.work.projects.all()) == 1


def test_a_scale_with_too_many_parts_is_named(house: House) -> None:
    fields = {"name": "One", "kind": "rating", "axes": "a | 1 | 2 | x | y | z"}
    answer = post(house.logged_in("Olga"), "/manage/projects", fields)
    assert (answer.status_code, "has 6 parts" in answer.text) == (422, True)


def test_a_member_is_added_changed_and_removed(house: House) -> None:
    olga, ann = house.logged_in("Olga"), house.logged_in("Ann")
    project = house.work.project(num_tasks=1, access="members")
    person = next(one.id for one in house.work.accounts.everyone() if one.name == "Ann")
    path = f"/manage/projects/{project.id}/members"
    assert "why=members" in post(ann, f"/projects/{project.id}/next").headers["location"]
    assert post(olga, path, {"person_id": person, "pools": "law, french", "max_tasks": "2"}).status_code == 303
    (member,) = house.work.projects.members(project.id)
    assert (member.pools, member.max_tasks) == (("law", "french"), 2)
    assert "/tasks/" in post(ann, f"/projects/{project.id}/next").headers["location"]
    assert post(olga, path, {"person_id": person, "remove": "1"}).status_code == 303
    assert house.work.projects.members(project.id) == []


def test_the_start_page_has_projects_that_are_ones_own(house: House) -> None:
    open_to_all = house.work.project(num_tasks=1).name
    closed = house.work.project(num_tasks=1, access="members")
    olga, ann = house.logged_in("Olga"), house.logged_in("Ann")
    assert [name in ann.get("/").text for name in (open_to_all, closed.name)] == [True, False]
    assert closed.name in olga.get("/").text
    person = next(one.id for one in house.work.accounts.everyone() if one.name == "Ann")
    post(olga, f"/manage/projects/{closed.id}/members", {"person_id": person})
    assert closed.name in ann.get("/").text
