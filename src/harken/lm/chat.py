"""Conversations to tokens and back: the one place where text is rendered, encoded and decoded.

Supervised fine-tuning, reward training, PPO and evaluation all come through `Chat`, so a prompt has the same tokens
everywhere, and what counts as completion (its text plus one end token) is decided here only.
"""

import re
from itertools import count
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from harken.errors import DataError
from harken.records import Prompt

TEMPLATES = {
    "raw": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
    "plain": (
        "{% for message in messages %}{{ message['role'] | capitalize }}:\n{{ message['content'] }}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
        "{% if add_generation_prompt %}Assistant:\n{% endif %}"
    ),
}


_PRIVATE_USE = 0xE000
"""First of the code points to which Unicode gives no meaning."""


class Chat:
    """A tokenizer with its template, and the tokens that end a completion.

    Only the template writes special tokens: `<|im_end|>` in somebody's message is the text of ten characters, which
    ends no turn. With the template `raw` there is no template to tell from the texts, and special tokens in
    them are what they say.

    Attributes:
        end_id: the token appended to every completion that stopped.
        stop_ids: tokens at which sampling stops; contains `end_id`.
        note: what was assumed about the template, for people; empty when nothing was.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: Literal["auto", "plain", "raw"] = "auto",
        *,
        extra_stop_ids: tuple[int, ...] = (),
        stop: tuple[str, ...] = (),
    ) -> None:
        """Choose the template and find the end token.

        Args:
            tokenizer: of the model; a pad token is not needed.
            template: `auto` takes the tokenizer's own, else `plain`.
            extra_stop_ids: further stop tokens, as from the model's generation config.
            stop: texts of further stop tokens.

        Raises:
            DataError: the tokenizer has no end token at all, or a stop text is not one token.
        """
        self.tokenizer: Any = tokenizer
        self.note = ""
        if template == "auto" and not tokenizer.chat_template:
            self.note = "the model has no chat template; conversations are rendered as `User:` and `Assistant:` lines"
            template = "plain"
        if template != "auto":
            starts_with_bos = self._starts_with_bos()
            bos = "{{ bos_token }}" if starts_with_bos else ""
            tokenizer.chat_template = bos + TEMPLATES[template]
        self._special = _names(tokenizer)
        self.end_id = self._find_end_id()
        eos = self.tokenizer.eos_token_id
        self.stop_ids = frozenset({self.end_id, *extra_stop_ids} | ({eos} if eos is not None else set()))
        self.stop_ids |= {self._stop_id(text) for text in stop}
        self._anchor = self._encode("a")[-1:]
        self._anchor_text = self.tokenizer.decode(self._anchor)
        behind = self.tokenizer.decode([*self._anchor, *self._encode("b")])
        # SentencePiece style: a space is put in front of every text, as if a word began there.
        self._adds_space = behind == f"{self._anchor_text} b"

    def render(self, prompt: Prompt) -> str:
        """Return the text of a prompt up to where its completion begins.

        Raises:
            DataError: the model's template refuses the conversation, as some do a system message.
        """
        messages = [message.model_dump() for message in prompt.messages]
        continues = messages[-1]["role"] == "assistant"
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=not continues,
                continue_final_message=continues,
            )
        except (TemplateError, ValueError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(
                f"prompt {prompt.id!r}: the chat template cannot render its messages ({roles}): {error}; change them, "
                "or set chat.template to plain"
            ) from error

    def encode_prompt(self, prompt: Prompt, *, max_length: int | None = None) -> list[int]:
        """Return the token ids of a prompt, special tokens included.

        Raises:
            DataError: the prompt has no token, or more than `max_length`.
        """
        ids = self._encode_messages(prompt)
        if not ids:
            raise DataError(f"prompt {prompt.id!r} has no tokens; give it some text")
        if max_length is not None and len(ids) > max_length:
            raise DataError(
                f"prompt {prompt.id!r} has {len(ids)} tokens, the limit is {max_length}; shorten it or raise the "
                "limit (max_length, or the model's context less max_new_tokens)"
            )
        return ids

    def encode_completion(self, text: str, *, stopped: bool = True) -> list[int]:
        """Return the token ids of a completion; one that stopped ends with `end_id`."""
        return self._encode_text(text) + ([self.end_id] if stopped else [])

    def decode_completion(self, ids: list[int]) -> str:
        """Return the text of sampled tokens, without the stop token.

        Decoded behind an anchor token, because some tokenizers drop the space in front of a first word.
        """
        body = ids[:-1] if ids and ids[-1] in self.stop_ids else ids
        text = self.tokenizer.decode(
            [*self._anchor, *body], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text[len(self._anchor_text) :]

    def _encode_messages(self, prompt: Prompt) -> list[int]:
        """Encode what `render` gives; a special token's name in a message is text."""
        texts = "".join(message.content for message in prompt.messages)
        if not self._special.search(texts):
            return self._encode(self.render(prompt))
        mark = _unused(texts)
        messages = [
            message.model_copy(update={"content": self._with_names_cut(message.content, mark)})
            for message in prompt.messages
        ]
        first, *rest = self.render(prompt.model_copy(update={"messages": tuple(messages)})).split(mark)
        return self._encode(first) + [token for part in rest for token in self._encode_behind(part)]

    def _encode_text(self, text: str) -> list[int]:
        """Encode what stands behind other text; a special token's name in it is text."""
        mark = _unused(text)
        return [token for part in self._with_names_cut(text, mark).split(mark) for token in self._encode_behind(part)]

    def _with_names_cut(self, text: str, mark: str) -> str:
        """Put a mark behind the first letter of each special token's name; encoded in parts, none comes of it.

        The tokenizers' own way (`split_special_tokens`) is not safe: a unigram model may choose the name as a piece.
        """
        return self._special.sub(lambda found: found[0][0] + mark + found[0][1:], text)

    def _encode_behind(self, text: str) -> list[int]:
        """Encode without the space that some tokenizers put in front of every text."""
        ids = self._encode(text)
        if self._adds_space:
            line = self._encode("\n")
            continued = self._encode(f"\n{text}")
            ids = continued[len(line) :] if continued[: len(line)] == line else ids
        return ids

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _stop_id(self, text: str) -> int:
        ids = self._encode(text)
        if len(ids) != 1:
            raise DataError(
                f"chat.stop: {text!r} is {len(ids)} tokens of this model, expected one; name a single token"
            )
        return ids[0]

    def _starts_with_bos(self) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer.encode("a")[:1] == [bos]

    def _find_end_id(self) -> int:
        """Return the first token that the template puts behind an assistant's text, if special, else eos."""
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        whole = self.tokenizer.apply_chat_template(messages, tokenize=False)
        begun = self.tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
        behind = self._encode(whole[len(begun) :])
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        if behind and behind[0] in special:
            return behind[0]
        if self.tokenizer.eos_token_id is None:
            raise DataError(
                "the tokenizer has no end-of-sequence token and its chat template ends turns with none; "
                "set eos_token in tokenizer_config.json"
            )
        return self.tokenizer.eos_token_id


def _names(tokenizer: Any) -> re.Pattern[str]:
    """Return what finds the names of special tokens in people's texts; nothing with the template `raw`."""
    names = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    names = {name for name in (*names, *tokenizer.all_special_tokens) if len(name) > 1}
    if not names or str(tokenizer.chat_template).endswith(TEMPLATES["raw"]):
        return re.compile(r"(?!)")
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))


def _unused(text: str) -> str:
    """Return a character that does not stand in a text."""
    return next(chr(code) for code in count(_PRIVATE_USE) if chr(code) not in text)
