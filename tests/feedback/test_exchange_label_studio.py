"""What is written for Label Studio fits its own rules: every text and control that is named is there."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from harken.feedback.exchange.entry import Entry, Reading, make_completion, make_judgment, make_prompt, message
from harken.feedback.exchange.read import open_data
from harken.feedback.exchange.write import Style, plan, write
from harken.records import (
    Answer,
    Comparison,
    Completion,
    Correction,
    DemonstrationAnswer,
    ErrorSpan,
    Judge,
    Prompt,
    RankingAnswer,
    RatedAxis,
    Rating,
    Spans,
)

ANN = Judge(id="ann", kind="person")


def judged(prompt: Prompt, both: list[Completion], answer: Answer) -> Entry:
    return Entry(1, prompt, tuple(both), (make_judgment(1, prompt, both, answer, judge=ANN, rationale="why"),))


def all_kinds() -> list[Entry]:
    prompt = make_prompt([message("user", "P")])
    a, b, c = (make_completion(prompt, text) for text in ("A", "B", "C"))
    span = ErrorSpan(completion_id=b.id, start=0, end=1, label="wrong & odd")
    axes = {"stars": RatedAxis(value=4, low=1, high=5), "depth": RatedAxis(value=0.5, low=-1, high=1)}
    return [
        judged(prompt, [a, b], Comparison(outcome="win", winner=b.id, strength=2)),
        judged(prompt, [b, a], Comparison(outcome="tie")),
        judged(prompt, [a, b, c], RankingAnswer(ranks={a.id: 2, b.id: 3, c.id: 1})),
        judged(prompt, [a], Rating(axes=axes)),
        judged(prompt, [b], Spans(spans=(span,))),
        judged(prompt, [c], Spans(spans=())),
        judged(prompt, [a], Correction(completion_id=a.id, text="D")),
        judged(prompt, [], DemonstrationAnswer(text="E")),
    ]


def test_every_task_has_the_texts_and_every_result_the_control_that_the_config_names(tmp_path: Path) -> None:
    entries = all_kinds()
    assert plan(entries, "label-studio", Style()).losses == []
    path = tmp_path / "tasks.json"
    write(entries, path, "label-studio", Style(), {})
    tasks = json.loads(path.read_text(encoding="utf-8"))
    tags = list(ElementTree.parse(path.with_name("tasks.json.config.xml")).getroot())
    wanted = {tag.attrib["value"][1:] for tag in tags if tag.attrib.get("value", "").startswith("$")}
    assert wanted == {"prompt", "items", "answer1", "answer2", "answer3"}
    controls = {tag.attrib["name"]: tag for tag in tags if "toName" in tag.attrib}
    choices = {name: {one.attrib["value"] for one in tag} for name, tag in controls.items()}
    results = [one for task in tasks for own in task["annotations"] for one in own["result"]]
    assert {one["type"] for one in results} == {
        *("pairwise", "choices", "ranker", "rating", "number", "labels", "textarea"),
    }
    for task in tasks:
        # Label Studio refuses a file with a task that lacks one of these.
        assert all(task["data"][key] is not None for key in wanted)
    for one in results:
        tag = controls[one["from_name"]]
        assert tag.tag.lower() == one["type"]
        # A pairwise result names itself, as Label Studio writes it.
        assert one["to_name"] in (
            *tag.attrib["toName"].split(","),
            *([one["from_name"]] if tag.tag == "Pairwise" else []),
        )
        assert {*one["value"].get("choices", []), *one["value"].get("labels", [])} <= choices[one["from_name"]]
    back = [item for item in open_data(Reading(path)) if isinstance(item, Entry)]
    assert sorted(one.message.content for entry in back for one in entry.completions) == sorted(
        text for task in tasks for text in (own["body"] for own in task["data"]["items"])
    )

    def answers(found: list[Entry]) -> list[str]:
        return sorted(
            f"{one.shown} {json.dumps(one.answer.model_dump(), sort_keys=True)}"
            for entry in found
            for one in entry.judgments
        )

    assert answers(back) == answers(entries)


def test_an_empty_completion_of_another_tool_stays_one(tmp_path: Path) -> None:
    config = '<View><Pairwise name="c" toName="answer1,answer2"/></View>'
    (tmp_path / "l.json.config.xml").write_text(config, encoding="utf-8")
    result = {"type": "pairwise", "from_name": "c", "to_name": "c", "value": {"selected": "left"}}
    task = {"data": {"prompt": "P", "answer1": "A", "answer2": ""}, "annotations": [{"id": 1, "result": [result]}]}
    (tmp_path / "l.json").write_text(json.dumps([task]), encoding="utf-8")
    (entry,) = open_data(Reading(tmp_path / "l.json"))
    assert isinstance(entry, Entry)
    assert [one.message.content for one in entry.completions] == ["A", ""]
