"""Answers that give their writer's name away are found before anybody reads them."""

import re
from collections.abc import Iterable

COMMON_NAMES = (
    "OpenAI", "ChatGPT", "GPT", "GPT-2", "GPT-3", "GPT-3.5", "GPT-4", "GPT-4o", "GPT-5", "Anthropic",
    "Claude", "Google", "DeepMind", "Gemini", "Gemma", "Bard", "PaLM", "Meta AI", "Llama", "Llama 2",
    "Llama 3", "Vicuna", "Alpaca", "Mistral", "Mixtral", "Alibaba", "Qwen", "DeepSeek", "xAI", "Grok",
    "Microsoft", "Copilot", "Phi-2", "Phi-3", "Cohere", "Command R", "Falcon", "Yi", "Kimi", "Moonshot AI",
    "ChatGLM", "Zhipu", "Baichuan", "InternLM", "Nemotron", "OLMo", "Hugging Face", "SmolLM", "SmolLM2",
    "Zephyr", "Pythia", "StableLM", "Open Assistant", "Perplexity",
)  # fmt: skip
"""Names of models and their makers that many models call themselves by, rightly or not."""
_GENERIC = {
    "model", "models", "chat", "instruct", "base", "final", "policy", "adapter", "merged", "latest", "https", "http",
    "localhost", "preview", "turbo", "large", "small", "mini", "test", "checkpoint", "home", "work", "runs", "data",
}  # fmt: skip
"""Parts of a model's path or id that are words of everyday language."""
_SHORTEST = 4
"""Shorter parts of a model's id are left out: they are found in everything."""


class Names:
    """The names to look for."""

    def __init__(self, models: Iterable[str], more: Iterable[str] = (), common: Iterable[str] = COMMON_NAMES) -> None:
        """Take names.

        Args:
            models: ids or paths of the models that answer; their parts are looked for, too.
            more: further names, as they are.
            common: names known to all.
        """
        found = {name.strip() for name in (*more, *common)} - {""}
        for model in models:
            parts = {model, *re.split(r"[/\\#:]", model), *re.split(r"[/\\#:_.\-\s]", model)}
            found |= {part for part in parts if len(part) >= _SHORTEST and part.lower() not in _GENERIC}
        alternatives = (
            # "Llama 3", "Llama-3" and "llama3" are one name.
            r"[\s_-]?".join(re.escape(word) for word in re.split(r"[\s_-]+", name))
            for name in sorted(found, key=len, reverse=True)
        )
        self._pattern = re.compile(rf"(?<![^\W_])(?:{'|'.join(alternatives)})(?![^\W_])", re.IGNORECASE)
        self.longest = max(map(len, found), default=0) + 1
        """Characters that a name and what ends it can take."""

    def find(self, text: str, start: int = 0) -> str:
        """Return the first name in a text from a place on, "" where there is none."""
        found = self._pattern.search(text, start)
        return found.group() if found else ""

    def masked(self, text: str) -> str:
        """Return a text with every name blotted out."""
        return self._pattern.sub("[name]", text)


class Release:
    """One answer on its way to the page: its end is held back while it may be the beginning of a name."""

    def __init__(self, names: Names) -> None:
        """Begin with an empty answer."""
        self._names = names
        self._whole = ""
        self._released = 0
        self.name = ""
        """The name that was found; "" while there is none."""

    def feed(self, text: str, *, is_end: bool = False) -> str:
        """Take what the model has written next and return what may be shown now.

        `name` is set before the text that holds it is returned.
        """
        self._whole += text
        if not self.name:
            hold = 0 if is_end else self._names.longest
            start = max(0, self._released - self._names.longest)
            # What stands at the very end may go on: "Bard" may become "Bardolph".
            settled = self._whole if is_end else self._whole[: max(self._released, len(self._whole) - 1)]
            self.name = self._names.find(settled, start)
            end = len(self._whole) if self.name else max(self._released, len(self._whole) - hold)
        else:
            end = len(self._whole)
        out = self._whole[self._released : end]
        self._released = end
        return out
