"""A tiny random model with a byte-level tokenizer, in the folder layout of a real one."""

from pathlib import Path
from typing import Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# The structure of ChatML: the end token closes each turn and belongs to it.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<bos>' + message['role'] + '\n' + message['content'] + '<|end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<bos>assistant\n' }}{% endif %}"
)

END_ID = 256
BOS_ID = 257
PAD_ID = 258  # only with pad="own"


def make_tiny_tokenizer(
    *, chat_template: bool = True, pad: Literal["own", "none", "eos"] = "own"
) -> PreTrainedTokenizerFast:
    """Build a byte-level tokenizer without merges: one token a byte, plus the special tokens.

    Args:
        chat_template: whether it carries a chat template.
        pad: "own" is a pad token of its own, "eos" the end token, "none" no pad token at all.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(alphabet)}
    specials = ["<|end|>", "<bos>"] + (["<pad>"] if pad == "own" else [])
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in specials])
    names = {"eos_token": "<|end|>", "bos_token": "<bos>"}
    if pad != "none":
        names["pad_token"] = "<pad>" if pad == "own" else "<|end|>"
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)
    wrapped.chat_template = CHAT_TEMPLATE if chat_template else None
    return wrapped


def make_tiny_model(
    folder: Path,
    *,
    chat_template: bool = True,
    pad: Literal["own", "none", "eos"] = "own",
    max_positions: int = 256,
    seed: int = 0,
) -> Path:
    """Save a random llama (2 layers, width 32, 4 heads on 2) with its tokenizer as safetensors.

    Weights are drawn ten times wider than usual: next-token distributions then differ from each
    other and from uniform, so that a wrong position, mask or cache changes the numbers.

    Args:
        folder: is made if it does not exist.
        chat_template: whether the tokenizer carries a chat template.
        pad: "own" is a pad token of its own, "eos" the end token, "none" no pad token at all.
        max_positions: the longest sequence the model declares, in tokens.
        seed: of the weights; the global generator is left as it was.

    Returns: the folder.
    """
    tokenizer = make_tiny_tokenizer(chat_template=chat_template, pad=pad)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_positions,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=END_ID,
        pad_token_id={"own": PAD_ID, "none": None, "eos": END_ID}[pad],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.model_max_length = max_positions
    tokenizer.save_pretrained(folder)
    return folder
