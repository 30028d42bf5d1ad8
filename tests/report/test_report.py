import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harken.errors import DataError
from harken.report.html import write_report
from tests.report import fixture

VOID = {"meta", "br", "wbr", "hr", "img", "link", "input", "col"}
SECTIONS = ["people", "agreement", "reward", "training", "samples", "evaluation", "cost"]
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "{{7*7}}{% include 'x' %}",
    "</style></title><iframe src=https://example.org>",
    "\u202egnp.exe",
]


class Page(HTMLParser):
    """Elements with their attributes and texts; remembers tags that were closed in the wrong order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def report(run: Path) -> str:
    out = run.parent / "report.html"
    write_report(run, out)
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page_text(tmp_path_factory) -> str:
    return report(fixture.write_run(tmp_path_factory.mktemp("whole") / "run"))


@pytest.fixture(scope="module")
def page(page_text) -> Page:
    return Page(page_text)


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with few metrics: a plot takes 25 ms, and these tests are not about curves."""
    return fixture.write_run(tmp_path / "run", metrics=("loss", "score_mean", "entropy"))


def test_the_page_is_balanced_and_has_one_of_each_landmark(page):
    assert page.unbalanced == []
    assert page.open == []
    for tag in ("html", "head", "body", "header", "nav", "main", "footer", "h1", "style"):
        assert len(page.all(tag)) == 1
    assert page.all("html") == [{"lang": "en"}]
    assert {one["id"] for one in page.all("section")} == {*SECTIONS, "provenance"}


def test_every_reference_inside_the_page_is_found(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = [one["href"].removeprefix("#") for one in (*page.all("a"), *page.all("use"))]
    wanted += [name for _, attributes in page.elements for name in attributes.get("aria-labelledby", "").split()]
    assert len(wanted) > 20
    assert set(wanted) <= set(ids)


def test_nothing_is_loaded_and_nothing_runs(page_text, page):
    assert "http" not in page_text.replace("http-equiv", "")
    for tag in ("script", "img", "link", "iframe", "object", "embed", "base", "form"):
        assert page.all(tag) == []
    assert "@import" not in page_text
    assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)\)", page_text))
    assert not [key for _, attributes in page.elements for key in attributes if key[:2] == "on"]
    policies = [one["content"] for one in page.all("meta") if "http-equiv" in one]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_every_plot_and_table_can_be_read_without_seeing_it(page_text, page):
    plots = [one for one in page.all("svg") if one.get("class") == "plot"]
    # Ratings, reward accuracy, calibration, SFT loss, win rate; one a metric that is logged:
    # 5 more of SFT, 7 of the reward model, 24 of PPO (time_s included, step not).
    assert len(plots) == 5 + 5 + 7 + 24
    assert len(plots) == len(page.all("figure")) == len(page.all("desc"))
    for plot in plots:
        assert plot["role"] == "img"
    assert len(page.all("table")) == len(page.all("caption")) > len(plots)
    assert all(one.get("scope") in ("col", "row") for one in page.all("th"))


def test_the_headline_holds_the_numbers_of_the_run(page):
    for claim in (
        "The model learned what people preferred, and an independent judge agrees",
        "People gave 44,730 ratings of 2,500 texts",
        "in 74% of 800 held-out pairs (95% interval 71% to 77%)",
        "from 0.12 to 0.58, a difference of +0.46 (95% interval 0.40 to 0.52)",
        "prefers the completion after training in 74% of pairs (95% interval 70% to 78%)",
        "different word pairs 0.694 to 0.612",
        "The run took 7 min 12 s on 2 CPU cores; 51% of it went into PPO.",
    ):
        assert claim in page.text


def test_samples_stand_at_evenly_spaced_ranks_ends_included(page):
    ranks = re.findall(r"Rank (\d+) of 48", page.text)
    # 8 of ranks 1..48: 1 + round(47 i / 7), i = 0..7.
    assert ranks == ["1", "8", "14", "21", "28", "35", "41", "48"]
    changes = [
        float(change.replace("\N{MINUS SIGN}", "-"))
        for change in re.findall(r"score changed by ([+\N{MINUS SIGN}][\d.]+)", page.text)
    ]
    expected = sorted(row["reward_policy"] - row["reward_against"] for row in fixture.samples())
    shown = [round(expected[int(rank) - 1], 2) for rank in ranks]
    assert changes == pytest.approx(shown)


def test_provenance_lists_digests_and_parents(page):
    manifests = fixture.manifests()
    for stage, manifest in manifests.items():
        assert manifest.digest()[:12] in page.text
        for parent in manifest.parents:
            assert f"{parent} {manifests[parent].digest()[:12]}" in page.text, stage
    assert "from elsewhere" not in page.text


def test_a_parent_that_lies_elsewhere_is_marked(run):
    shutil.rmtree(run / "sft")
    assert Page(report(run)).text.count("(from elsewhere)") == 3  # of reward, ppo and evaluate


def test_the_same_run_gives_the_same_bytes(tmp_path, page_text):
    assert report(fixture.write_run(tmp_path / "run")) == page_text


def test_what_could_not_be_measured_is_not_claimed(run):
    # As written for no held-out pairs, and by judges that know no reward model.
    nothing = {"value": None, "low": None, "high": None, "n": 0}
    buckets = [{"label": "1 to 2", "n": 0, "accuracy": nothing}]
    empty = {"num_pairs": 0, "accuracy": nothing, "accuracy_difference_1_or_more": nothing}
    fixture.write(run / "reward/evaluation.json", {**empty, "buckets": buckets})
    names = ("prompt", "policy", "against", "lexicon_policy", "lexicon_against")
    rows = [{name: row[name] for name in names} for row in fixture.samples()]
    fixture.write_lines(run / "evaluate/samples.jsonl", rows)
    text = Page(report(run)).text
    assert "no pair was held out" in text
    assert "The independent judge scores the completion after training higher for" in text
    assert re.search(r"\bNone\b", text) is None


def test_unknown_metrics_are_shown_under_their_own_names(run):
    rows = [{"step": step, "my own/metric <b>": step**2} for step in range(9)]
    fixture.write_lines(run / "ppo/metrics.jsonl", rows)
    text = report(run)
    assert "my own/metric &lt;b&gt;" in text
    assert Page(text).unbalanced == []


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_texts_are_shown_and_inert(run, hostile):
    known = {tag for tag, _ in Page(report(run)).elements}
    info = {**fixture.run_info(), "recipe": hostile, "started": hostile}
    info["machine"] = {hostile: hostile}
    info["seconds"] = {hostile: 3.0}
    fixture.write(run / "run.json", info)
    agreement = fixture.agreement()
    agreement["axis"] = hostile
    agreement["most_disputed"] = [{"text": hostile, "mean": 0, "std": 1, "n": 2}]
    fixture.write(run / "collect/agreement.json", agreement)
    reward = fixture.reward_evaluation()
    reward["buckets"][0]["label"] = hostile
    fixture.write(run / "reward/evaluation.json", reward)
    rows = [{"step": step, hostile: 1.0} for step in range(9)]
    fixture.write_lines(run / "ppo/metrics.jsonl", rows)
    sample = {"step": 1, "prompt": hostile, "completion": hostile, "score": 1.0}
    fixture.write_lines(run / "ppo/samples.jsonl", [sample])
    pair = {**fixture.samples()[0], "prompt": hostile, "policy": hostile, "against": hostile}
    fixture.write_lines(run / "evaluate/samples.jsonl", [pair])
    manifest = fixture.manifests()["sft"].model_copy(
        update={"kind": hostile, "parents": {hostile: hostile}, "seeds": {hostile: 1}}
    )
    fixture.write(run / "sft/manifest.json", manifest.model_dump(mode="json"))

    text = report(run)
    page = Page(text)
    assert page.unbalanced == []
    shown = hostile.replace("\u202e", "⟨U+202E⟩")
    # In the header, the settings, examples, both samples, a bucket, a metric, a manifest.
    assert page.text.count(re.sub(r"\s+", " ", shown)) >= 10
    assert "\u202e" not in text
    assert {tag for tag, _ in page.elements} <= known
    assert not [key for _, attributes in page.elements for key in attributes if key[:2] == "on"]
    assert len(page.all("style")) == 1


def test_a_lone_surrogate_does_not_stop_the_report(run):
    sample = {**fixture.samples()[0], "policy": "broken \ud800 text"}
    fixture.write_lines(run / "evaluate/samples.jsonl", [sample])
    assert "broken ⟨U+D800⟩ text" in report(run)


PARTS = [
    "run.json",
    "collect/agreement.json",
    "preferences/summary.json",
    "sft/metrics.jsonl",
    "reward/metrics.jsonl",
    "reward/evaluation.json",
    "ppo/metrics.jsonl",
    "ppo/samples.jsonl",
    "evaluate/evaluation.json",
    "evaluate/samples.jsonl",
]


@pytest.mark.parametrize("part", PARTS)
def test_any_part_may_be_missing(run, part):
    (run / part).unlink()
    page = Page(report(run))
    assert page.unbalanced == []
    assert len(page.all("section")) == len(SECTIONS) + 1


def test_an_empty_run_says_that_nothing_has_run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    page = Page(report(run))
    assert "This run has not been evaluated yet" in page.text
    # One a section; training and its fine-tuning have one each.
    assert page.text.count("Not run yet") == len(SECTIONS) + 2
    assert page.unbalanced == []


def test_a_line_that_is_still_being_written_is_left_out(run):
    path = run / "ppo/metrics.jsonl"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + '{"step": 51, "score_m', encoding="utf-8")
    assert "over 50 steps" in Page(report(run)).text


def test_values_that_are_not_numbers_leave_a_gap(run):
    rows = fixture.ppo_curve()
    lines = [json.dumps(row) for row in rows]
    lines[3] = lines[3].replace(f'"entropy": {rows[3]["entropy"]}', '"entropy": NaN')
    assert "NaN" in lines[3]
    (run / "ppo/metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = report(run)
    assert "Entropy at 49 steps" in text
    assert "nan" not in Page(text).text.lower().split()


@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_file_is_named(run, part):
    (run / part).write_text("{broken\n", encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(f"{part}:1: bad JSON")):
        report(run)


@pytest.mark.parametrize(
    ("part", "content", "problem"),
    [
        ("run.json", '{"seconds": {"sft": "long"}}', "seconds.sft"),
        ("collect/agreement.json", '{"num_items": 3}', "num_judgments"),
        ("reward/evaluation.json", '{"num_pairs": 1, "accuracy": {"value": NaN}}', "accuracy"),
        ("evaluate/evaluation.json", '{"num_prompts": 1}', "completions_per_prompt"),
        ("ppo/metrics.jsonl", '{"step": 1}\n{"loss": 2}\n', "metrics.jsonl:2: not a row"),
        ("ppo/metrics.jsonl", "[1]\n", "metrics.jsonl:1: not a row"),
        ("evaluate/samples.jsonl", '{"prompt": "x"}\n', "samples.jsonl:1: policy"),
        ("sft/manifest.json", '{"files": {}}', "not a manifest: kind"),
        ("run.json", "[" * 100_000, "nested too deeply"),
        ("run.json", '{"seed": ' + "9" * 5_000 + "}", "number too long"),
    ],
)
def test_a_wrong_value_is_named_with_file_and_field(run, part, content, problem):
    (run / part).write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as error:
        report(run)
    assert part.split("/")[-1] in str(error.value)
    assert problem in str(error.value)


def test_bytes_that_are_not_utf8_are_named(run):
    (run / "evaluate/samples.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match=r"samples\.jsonl:1: not UTF-8"):
        report(run)


def test_a_missing_run_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="no such run folder"):
        write_report(tmp_path / "nowhere", tmp_path / "report.html")
