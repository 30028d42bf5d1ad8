"""Models as judges: both orders, ties where they disagree, resumable, and told apart from people."""

import json
from pathlib import Path
from typing import Any

import pytest

from harken.config import ProjectConfig
from harken.config.preferences import PreferencesConfig
from harken.errors import DataError, RewardError, SamplerError
from harken.feedback.judge import ByScore, ModelJudge, judge_pairs
from harken.feedback.language_judge import LanguageJudge
from harken.feedback.store import FeedbackStore
from harken.feedback.store.machine import asked_pairs
from harken.feedback.tasks import TaskLine
from harken.preferences.pairs import preferences_from_export, resolve_export
from harken.preferences.votes_report import votes_report
from harken.records import Comparison
from tests.cli.calling import call
from tests.feedback.scripted import Scripted, service
from tests.feedback.working import SOURCE, Workshop, lines, win


@pytest.fixture
def work(tmp_path: Path) -> Any:
    with FeedbackStore.open(f"sqlite:///{tmp_path / 'f.db'}") as store:
        yield Workshop.over(store)


def _judge(say: Any, name: str = "judge") -> ModelJudge:
    judge = LanguageJudge(Scripted(name, lambda messages: say(messages[-1].content)), concurrency=2)
    return ModelJudge(name, "model", judge.version, judge)


def _prefers(text: str) -> Any:
    """A judge that finds this text the better one, wherever it stands."""

    def say(question: str) -> str:
        first = question.index("<answer_A>") < question.index(text) < question.index("</answer_A>")
        return f"Reasons, such as [[C]] or not.\n[[{'A' if first else 'B'}]]"

    return say


def test_a_judge_that_looks_wins_and_one_that_takes_the_first_ties(work: Workshop) -> None:
    work.project(4)
    pairs = asked_pairs(work.store.database, None)
    assert len(pairs) == 4
    good = judge_pairs(work.store.database, pairs, _judge(_prefers("Answer b to")))
    assert (good.outcomes, good.num_flipped, good.num_known) == ({"win": 4}, 0, 0)
    lazy = judge_pairs(work.store.database, pairs, _judge(lambda _: "[[A]]", "lazy"))
    assert (lazy.outcomes, lazy.num_flipped) == ({"tie": 4}, 4)
    odd = judge_pairs(work.store.database, pairs, _judge(lambda _: "I would rather not say.", "odd"))
    assert (odd.outcomes, odd.num_flipped) == ({"unsure": 4}, 0)
    texts = {one.id: one.message.content for one in work.store.completions()}
    for judgment in work.store.judgments():
        assert judgment.judge.kind == "model"
        assert judgment.guideline.startswith("pairwise-1:")
        assert judgment.assignment is None
        assert judgment.timing.active_s is not None
        answer = judgment.answer
        assert isinstance(answer, Comparison)
        if judgment.judge.id == "model:judge":
            assert texts[str(answer.winner)].startswith("Answer b to")
            assert "The other way round: Reasons" in judgment.rationale


def test_which_side_counts_as_shown_is_drawn(work: Workshop) -> None:
    work.project(40)
    pairs = asked_pairs(work.store.database, None)
    judge_pairs(work.store.database, pairs, ModelJudge("even", "rule", "score", ByScore(lambda p, c: [0.0] * len(c))))
    firsts = sum(judgment.shown[0] < judgment.shown[1] for judgment in work.store.judgments())
    assert 8 < firsts < 32  # by chance outside in 1 of 10,000 sets of tasks
    assert {j.answer.outcome for j in work.store.judgments() if isinstance(j.answer, Comparison)} == {"tie"}


def test_judging_goes_on_after_a_failure_and_judges_nothing_twice(work: Workshop) -> None:
    work.project(10)
    pairs = asked_pairs(work.store.database, None)
    asked = 0

    def say(question: str) -> str:
        nonlocal asked
        asked += 1
        return "FAIL" if asked == 15 else _prefers("Answer a to")(question)

    with pytest.raises(SamplerError):
        judge_pairs(work.store.database, pairs, _judge(say), batch_size=2)
    before = len(list(work.store.judgments()))
    assert 0 < before < 10
    done = judge_pairs(work.store.database, pairs, _judge(say), batch_size=2)
    assert done.num_known == before
    assert done.outcomes == {"win": 10 - before}
    again = judge_pairs(work.store.database, pairs, _judge(say), batch_size=2)
    assert (again.outcomes, again.num_known) == ({}, 10)


def test_other_criteria_are_another_judgment(work: Workshop) -> None:
    work.project(2)
    pairs = asked_pairs(work.store.database, None)
    for criteria in ("Be short.", "Be kind."):
        model = Scripted("m", lambda messages: "[[A]]")
        judge = LanguageJudge(model, criteria=criteria)
        judge_pairs(work.store.database, pairs, ModelJudge("m", "model", judge.version, judge))
        assert criteria in model.asked[0][0].content
    assert len(list(work.store.judgments())) == 4


def test_people_and_models_are_never_mixed_unless_asked_for(work: Workshop, tmp_path: Path) -> None:
    ann, bob = work.people("Ann", "Bob")
    project = work.project(12, overlap=2)
    for person in (ann, bob):
        for _ in range(12):
            lease = work.leases.claim(project.id, person.id)
            place = [one.message.content[7] for one in lease.completions].index("a")
            work.leases.submit(lease.id, person.id, win(lease, place))
    pairs = asked_pairs(work.store.database, project.id)
    judge_pairs(work.store.database, pairs, _judge(_prefers("Answer b to")))
    folder = tmp_path / "export"
    work.store.export(folder)
    chosen: dict[str, set[str]] = {}
    for judges in ("people", "models", "all"):
        found, _ = preferences_from_export(folder, PreferencesConfig(judges=judges, heldout_fraction=0.0))
        chosen[judges] = {pair.chosen.content[7] for pair in found}
        assert all(len(pair.judgment_ids) == {"people": 2, "models": 1, "all": 3}[judges] for pair in found)
    assert chosen == {"people": {"a"}, "models": {"b"}, "all": {"a"}}
    notes = resolve_export(folder, PreferencesConfig()).notes
    assert any("12 judgments by models were left out" in note for note in notes)
    report = votes_report(work.store.judgments(), work.store.completions(), resamples=10)
    assert report is not None
    assert (report["num_votes"], report["num_judges"]) == (24, 2)
    (row,) = report["models"]
    assert (row["judge"], row["votes"], row["meetings"], row["agreement"]) == ("model:judge", 12, 24, 0.0)
    assert row["people"]["agreement"] == 1.0
    assert row["admissible"] is (None if row["people"]["kappa"] is None else False)


def test_a_service_is_asked_in_both_orders_and_its_key_is_sent_not_stored(
    work: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work.project(3)
    monkeypatch.setenv("HARKEN_MODEL_KEY", "sesame-key")
    seen: list[dict[str, Any]] = []
    say = _prefers("Answer b to")
    url = f"sqlite:///{tmp_path / 'f.db'}"
    with service(lambda body: say(body["messages"][-1]["content"]), seen=seen) as address:
        ended = call("collect", "judge", "--store", url, "--judge", f"{address}#strict-one")
        assert ended.code == 0, ended.err
        assert "model:strict-one" in ended.out
    assert len(seen) == 6
    assert {one["authorization"] for one in seen} == {"Bearer sesame-key"}
    assert b"sesame-key" not in (tmp_path / "f.db").read_bytes()
    told = call("collect", "agreement", "--store", url)
    assert told.code == 0, told.err


@pytest.mark.parametrize(
    ("text", "problem"),
    [("FAIL", "HTTP 500"), ("MOVED", "HTTP 302"), ("BROKEN", "broke off")],
)
def test_a_service_that_fails_is_told(work: Workshop, tmp_path: Path, text: str, problem: str) -> None:
    work.project(1)
    with service(lambda body: text) as address:
        ended = call("collect", "judge", "--store", f"sqlite:///{tmp_path / 'f.db'}", "--judge", f"{address}#m")
    assert ended.code == 1
    assert problem in ended.problem


def test_a_lexicon_judges_by_its_scores(work: Workshop, tmp_path: Path) -> None:
    work.project(2)
    ended = call("collect", "judge", "--store", f"sqlite:///{tmp_path / 'f.db'}", "--judge", "lexicon", "--json")
    assert ended.code == 0, ended.err
    assert '"tie": 2' in ended.out  # "Answer a" and "Answer b" have no feeling
    assert {judgment.judge.kind for judgment in work.store.judgments()} == {"rule"}


def test_by_score_is_the_sigmoid_of_the_difference(work: Workshop) -> None:
    work.project(1)
    (pair,) = asked_pairs(work.store.database, None)
    scores = {pair.one.id: 1.0, pair.other.id: -1.0}
    judge = ByScore(lambda prompts, completions: [scores[one.id] for one in completions])
    # sigmoid(2) = 0.880797
    assert judge.compare([pair.prompt], [pair.one], [pair.other]) == pytest.approx([0.880797], abs=1e-6)
    broken = ByScore(lambda prompts, completions: [float("nan")])
    with pytest.raises(RewardError):
        judge_pairs(work.store.database, [pair], ModelJudge("broken", "rule", "score", broken))
    assert not list(work.store.judgments())


def test_only_judgments_of_models_are_told_so(work: Workshop, tmp_path: Path) -> None:
    work.project(3)
    judge_pairs(work.store.database, asked_pairs(work.store.database, None), _judge(_prefers("Answer b to")))
    work.store.export(tmp_path / "export")
    with pytest.raises(DataError, match="all 3 judgments are by models"):
        resolve_export(tmp_path / "export", PreferencesConfig())


def test_pairs_in_other_formats_are_by_people_where_people_have_judged(work: Workshop, tmp_path: Path) -> None:
    (ann,) = work.people("Ann")
    project = work.project(2)
    lease = work.leases.claim(project.id, ann.id)
    place = [one.message.content[7] for one in lease.completions].index("a")
    work.leases.submit(lease.id, ann.id, win(lease, place))
    judge_pairs(work.store.database, asked_pairs(work.store.database, None), _judge(_prefers("Answer b to")))
    out, url = tmp_path / "pairs.jsonl", f"sqlite:///{tmp_path / 'f.db'}"
    ended = call("collect", "export", "--store", url, "--format", "trl-preference", "--out", out, "--accept-loss")
    assert ended.code == 0, ended.err
    chosen = [json.loads(line)["chosen"] for line in out.read_text().splitlines()]
    assert [str(one).count("Answer a to") for one in chosen] == [1]
    assert "left out: 2 judgments by models" in ended.err


def test_chances_of_tasks_reach_the_report(work: Workshop) -> None:
    (ann,) = work.people("Ann")
    project = work.projects.make("sampled", ProjectConfig())
    rows = [
        TaskLine(
            prompt=line.prompt,
            completions=tuple(
                one.model_copy(update={"model": name}) for one, name in zip(line.completions, "mn", strict=True)
            ),
            selection_probability=chance,
        )
        for line, chance in zip(lines(4), (1.0, 1.0, 0.25, 0.25), strict=True)
    ]
    work.projects.add_tasks(project.id, rows, SOURCE)
    for number in range(4):
        lease = work.leases.claim(project.id, ann.id)
        winner = "m" if number < 2 else "n"
        work.leases.submit(lease.id, ann.id, win(lease, [one.model for one in lease.completions].index(winner)))
    report = votes_report(work.store.judgments(), work.store.completions(), resamples=50)
    assert report is not None
    found = report["selection"]["wins"]["m against n"]
    # m won the two with weight 1, n the two with weight 4: 2 / 10.
    assert found["all_pairs"]["value"] == pytest.approx(0.2)
    assert found["chosen_pairs"]["value"] == pytest.approx(0.5)
    assert report["selection"]["effective_pairs"] == pytest.approx(100 / 34)
