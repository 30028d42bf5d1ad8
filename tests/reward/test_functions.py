"""Rewards that are not models: functions, services, the lexicon, sums; each fault names what went wrong and where."""

import json
import math
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from harken.config import FullConfig
from harken.errors import DataError, HarkenError, RewardError, UsageError
from harken.protocols import Reward, checked_scores
from harken.records import Completion, Prompt
from harken.reward.functions import HttpReward, Lexicon, WeightedSum, load_reward
from harken.reward.train import train_reward
from tests.policy import material

PROMPTS = [material.prompt(text) for text in ("first", "second", "third")]
COMPLETIONS = [
    material.completion_of(prompt, text) for prompt, text in zip(PROMPTS, ("eel", "tree", "no"), strict=True)
]


def test_sound_scores_come_back_as_floats() -> None:
    assert checked_scores(material.count_letter, PROMPTS, COMPLETIONS) == [2.0, 2.0, 0.0]
    assert checked_scores(lambda prompts, completions: [1, True, 2.5], PROMPTS, COMPLETIONS) == [1.0, 1.0, 2.5]
    assert checked_scores(material.count_letter, [], []) == []


def test_a_reward_that_raises_names_the_prompt_at_fault() -> None:
    def reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        return [1 / (len(completion.message.content) - 4) for completion in completions]

    with pytest.raises(
        RewardError, match=r"ZeroDivisionError: division by zero, for prompt \"prompt 'second'\""
    ) as caught:
        checked_scores(reward, PROMPTS, COMPLETIONS)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_reward_that_raises_only_on_many_prompts_names_them_all() -> None:
    def reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        if len(prompts) > 1:
            raise MemoryError("too many")
        return [0.0]

    with pytest.raises(RewardError, match=r"MemoryError: too many, for prompts .*first.* to .*third.* together"):
        checked_scores(reward, PROMPTS, COMPLETIONS)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_names_its_prompt(value: float) -> None:
    with pytest.raises(RewardError, match=rf"returned {value} for prompt \"prompt 'third'\""):
        checked_scores(lambda prompts, completions: [0.0, 1.0, value], PROMPTS, COMPLETIONS)


def test_a_score_that_is_no_number_names_its_prompt() -> None:
    def reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Any]:
        return ["good" if prompt.id == PROMPTS[1].id else 1.0 for prompt in prompts]

    with pytest.raises(RewardError, match=r"ValueError: .*'good', for prompt \"prompt 'second'\""):
        checked_scores(reward, PROMPTS, COMPLETIONS)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_wrong_number_of_scores_is_an_error(count: int) -> None:
    with pytest.raises(RewardError, match=rf"returned {count} scores for 3 completions \(prompts .*first.* to .*third"):
        checked_scores(lambda prompts, completions: [0.0] * count, PROMPTS, COMPLETIONS)


def test_an_error_that_harken_explains_passes_as_it_is() -> None:
    def reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        raise DataError("prompt 7 is too long")

    with pytest.raises(DataError, match=r"^prompt 7 is too long$"):
        checked_scores(reward, PROMPTS, COMPLETIONS)


def test_a_sum_weighs_its_parts_and_checks_each() -> None:
    def lengths(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        return [float(len(completion.message.content)) for completion in completions]

    # 2 * letters e - 0.5 * length: 4 - 1.5, 4 - 2, 0 - 1.
    both = WeightedSum([(2.0, material.count_letter), (-0.5, lengths)])
    assert both(PROMPTS, COMPLETIONS) == [2.5, 2.0, -1.0]
    broken: Reward = WeightedSum([(0.0, lambda prompts, completions: [0.0]), (1.0, lengths)])
    with pytest.raises(RewardError, match="1 scores for 3 completions"):
        broken(PROMPTS, COMPLETIONS)


SOURCE = """
def letters(prompts, completions):
    return [completion.message.content.count("e") for completion in completions]

def prompts_too(prompts, completions):
    return [len(prompt.messages[-1].content) for prompt in prompts]

constant = 3
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_a_function_of_a_file_is_a_reward(source: Path) -> None:
    assert load_reward(f"{source}:letters")(PROMPTS, COMPLETIONS) == [2, 2, 0]
    both = load_reward([f"0.5*{source}:letters", f"2*{source}:prompts_too"])
    # 0.5 * letters + 2 * prompt length: 1 + 10, 1 + 12, 0 + 10.
    assert both(PROMPTS, COMPLETIONS) == [11.0, 13.0, 10.0]
    assert load_reward([f"-1*{source}:letters"])(PROMPTS, COMPLETIONS) == [-2.0, -2.0, 0.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{path}:absent", "mine.py: has no function 'absent'"),
        ("{path}:constant", "mine.py: has no function 'constant'"),
        ("{path}x.py:letters", "no such file"),
        ("heavy*lexicon", "expected WEIGHT.REWARD"),
        ("nowhere/at/all", "no such folder; give a reward model folder"),
    ],
)
def test_a_reward_that_cannot_be_had_is_a_usage_error(spec: str, message: str, source: Path) -> None:
    with pytest.raises(UsageError, match=message):
        load_reward(spec.format(path=source))


def test_a_file_that_does_not_import_says_why(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import no_such_module_anywhere\n")
    with pytest.raises(UsageError, match=r"broken\.py: could not be imported: ModuleNotFoundError"):
        load_reward(f"{path}:letters")


def test_the_lexicon_knows_good_from_bad() -> None:
    texts = ["A wonderful, moving film.", "A terrible, boring mess.", "The film runs two hours."]
    items = [material.completion_of(prompt, text) for prompt, text in zip(PROMPTS, texts, strict=True)]
    good, bad, neither = load_reward("lexicon")(PROMPTS, items)
    assert good > 0.5
    assert bad < -0.5
    assert neither == 0.0
    assert isinstance(load_reward("lexicon"), Lexicon)


class _Service(BaseHTTPRequestHandler):
    """Counts letters; /NAME decides what goes wrong."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        texts = [completion["message"]["content"] for completion in body["completions"]]
        assert len(texts) == len(body["prompts"])
        replies: dict[str, tuple[int, str]] = {
            "/good": (200, json.dumps({"scores": [text.count(material.LETTER) for text in texts]})),
            "/short": (200, json.dumps({"scores": [1.0]})),
            "/nan": (200, '{"scores": [1.0, NaN, 2.0]}'),
            "/words": (200, json.dumps({"scores": ["high"] * len(texts)})),
            "/other": (200, json.dumps({"results": []})),
            "/list": (200, "[1, 2, 3]"),
            "/text": (200, "fine, thanks"),
            "/down": (500, "out of memory"),
        }
        status, reply = replies[self.path]
        self.send_response(status)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply.encode())

    def log_message(self, format: str, *args: Any) -> None:
        del format, args


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Service)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_service_is_a_reward(service: str) -> None:
    reward = load_reward(f"{service}/good")
    assert isinstance(reward, HttpReward)
    assert checked_scores(reward, PROMPTS, COMPLETIONS) == [2.0, 2.0, 0.0]
    assert load_reward([f"2*{service}/good"])(PROMPTS, COMPLETIONS) == [4.0, 4.0, 0.0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("short", "1 scores for 3 completions"),
        ("nan", r"nan for prompt \"prompt 'second'\""),
        ("words", "for prompt|not a number|'high'"),
        ("other", "gave no scores: KeyError"),
        ("list", "gave no scores: TypeError"),
        ("text", "gave no scores: JSONDecodeError"),
        ("down", "gave no scores: HTTPError: HTTP Error 500"),
    ],
)
def test_a_service_that_fails_is_a_reward_error(path: str, message: str, service: str) -> None:
    with pytest.raises(RewardError, match=message):
        checked_scores(HttpReward(f"{service}/{path}"), PROMPTS, COMPLETIONS)


def test_a_service_that_is_not_there_is_a_reward_error() -> None:
    with pytest.raises(RewardError, match=r"gave no scores: URLError.*refused"):
        checked_scores(HttpReward("http://127.0.0.1:9/scores"), PROMPTS, COMPLETIONS)


def test_a_services_password_is_not_shown() -> None:
    with pytest.raises(HarkenError) as caught:
        checked_scores(HttpReward("http://user:secret-word@127.0.0.1:9/scores"), PROMPTS, COMPLETIONS)
    assert "secret-word" not in str(caught.value)


def test_a_run_folder_or_its_model_folder_is_a_reward(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = material.reward_config(tune=FullConfig())
    folder = train_reward(tiny_model_dir, material.pairs(), tmp_path / "run", config)
    by_run = load_reward(str(tmp_path / "run"), compute=material.COMPUTE)(PROMPTS, COMPLETIONS)
    assert load_reward(str(folder), compute=material.COMPUTE)(PROMPTS, COMPLETIONS) == by_run
    doubled = load_reward([f"2*{folder}"], compute=material.COMPUTE)(PROMPTS, COMPLETIONS)
    assert doubled == pytest.approx([2 * score for score in by_run], rel=1e-6)
