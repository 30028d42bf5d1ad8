"""Small random models of several architectures, in memory, behind the tiny byte tokenizer."""

import copy
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from harken.lm.batch import Tokens
from harken.lm.chat import Chat
from harken.lm.load import LoadedModel
from harken.lm.trunk import Trunk
from tests.tiny import BOS_ID, END_ID, PAD_ID, make_tiny_tokenizer

VOCAB = 259
# Each has one feature that code written against llama forgets.
ARCHITECTURES = ("llama", "gpt2", "gemma2", "granite", "cohere", "qwen2", "qwen3", "mistral", "gpt_neox")


def _config(name: str) -> Any:
    shared: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "bos_token_id": BOS_ID,
        "eos_token_id": END_ID,
        "pad_token_id": PAD_ID,
    }
    grouped = {**shared, "num_key_value_heads": 2}
    match name:
        case "llama":  # grouped-query attention, tied embeddings
            return LlamaConfig(**grouped, tie_word_embeddings=True)
        case "gpt2":  # Conv1D layers, learned absolute positions
            sizes = {"n_embd": 32, "n_inner": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
            kept = ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")
            quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            return GPT2Config(**sizes, **quiet, **{key: shared[key] for key in kept})
        case "gemma2":  # soft-capped logits, every other layer sees a short window
            return Gemma2Config(**grouped, head_dim=8, final_logit_softcapping=3.0, sliding_window=6)
        case "granite":  # logits divided, embeddings multiplied
            return GraniteConfig(**grouped, logits_scaling=4.0, embedding_multiplier=2.0)
        case "cohere":  # logits multiplied
            return CohereConfig(**grouped, logit_scale=0.5)
        case "qwen2":  # bias in the attention projections, an output layer of its own
            return Qwen2Config(**grouped, tie_word_embeddings=False)
        case "qwen3":  # queries and keys normalized head by head, heads wider than the model
            return Qwen3Config(**grouped, head_dim=16)
        case "mistral":  # a short window in every layer
            return MistralConfig(**grouped, sliding_window=6)
        case "gpt_neox":  # fused projections with bias, parallel residual, output layer `embed_out`
            return GPTNeoXConfig(**shared, hidden_dropout=0.0, attention_dropout=0.0)
        case _:
            raise AssertionError(name)


@cache
def _built(name: str) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model: Any = AutoModelForCausalLM.from_config(_config(name))
        with torch.no_grad():  # biases start at zero, where a lost one would not show
            for key, value in model.named_parameters():
                if key.endswith("bias"):
                    value.normal_(0.0, 0.3)
                if key.endswith("norm.weight") or "layernorm.weight" in key:
                    value.add_(torch.randn_like(value) * 0.2)
    return model.eval()


def plain_model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return a fresh copy of the random model of an architecture."""
    return copy.deepcopy(_built(name)).to(dtype)  # pyright: ignore[reportArgumentType]


def make_trunk(name: str = "llama", dtype: torch.dtype = torch.float32, *, stop_ids: tuple[int, ...] = ()) -> Trunk:
    """Return a trunk on the random model of an architecture."""
    chat = Chat(make_tiny_tokenizer(), extra_stop_ids=stop_ids)
    return Trunk(LoadedModel(plain_model(name, dtype), chat, name))


def shake(trunk: Trunk, role: str, *, seed: int, size: float = 0.1) -> None:
    """Give every parameter of a role random values added to its own, so that the role differs from the base."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trunk.parameters(role).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


def random_tokens(seed: int, sizes: list[tuple[int, int]]) -> list[Tokens]:
    """Return random byte tokens with the given (prompt, completion) sizes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> list[int]:
        return torch.randint(0, 256, (size,), generator=generator).tolist()

    return [Tokens(draw(prompt), draw(completion)) for prompt, completion in sizes]


@torch.no_grad()
def plain_logits(model: nn.Module, ids: list[int]) -> torch.Tensor:
    """Return (S, V) fp32 logits of one unpadded sequence from the model's own forward pass."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def plain_logprobs(model: nn.Module, tokens: Tokens, temperature: float = 1.0) -> list[float]:
    """Return the log-probability of each completion token, one sequence and one token at a time."""
    ids = [*tokens.prompt, *tokens.completion]
    logits = plain_logits(model, ids) / temperature
    start = len(tokens.prompt)
    return [float(logits[place - 1].log_softmax(-1)[ids[place]]) for place in range(start, len(ids))]
