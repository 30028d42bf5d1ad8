"""One base in memory, many roles: policy, reference, critic and reward model share frozen weights.

A role is a set of low-rank adapters on the base, or a full copy of it, with or without a scalar head. The reference is
no role at all: the base with all adapters off.

    trunk = Trunk(load_model("smollm2"))
    trunk.add_role("policy", LoraConfig(), seed=0)
    states = trunk.hidden("policy", batch)        # through the policy's adapters
    states = trunk.hidden(None, batch)            # the reference
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from harken.config import FullConfig, LoraConfig
from harken.core.drawing import nucleus
from harken.lm.batch import Batch, microbatches, padding_waste
from harken.lm.llama import hidden_states, is_supported
from harken.lm.load import LoadedModel
from harken.lm.lora import LoraLinear, RoleSwitch
from harken.lm.products import linear, packed
from harken.runs import derive_seed
from harken.shapes import num_top_layers


@dataclass
class Role:
    """What a role has of its own."""

    full_model: PreTrainedModel | None = None
    """A trainable copy of the base, for full fine-tuning."""
    lora: LoraConfig | None = None
    through: str | None = None
    """The role whose adapters it reads through, where it has none of its own."""
    head: nn.Module | None = None
    """States (N, H) fp32 to scalars (N, 1); heads with more to say are asked themselves."""
    guide: Callable[[Tensor, Tensor], Tensor] | None = None
    """What becomes of states (N, H) and their logits (N, V): logits that are drawn from instead."""
    mask: "Mask | None" = None
    """Which tokens it may write at all."""
    gain: float = 1.0
    """What the head reads is in units of `gain * scalar + bias`."""
    bias: float = 0.0
    reads_apart: bool = False
    """Whether it reads texts of its own only, and so need not share lower layers with the other roles."""


@dataclass(frozen=True)
class Mask:
    """A role writes only tokens that another role finds likely: the smallest set with this mass."""

    role: str
    """Whose likely tokens."""
    top_p: float
    """The mass, in (0, 1]."""


class Trunk:
    """A frozen base model and its roles."""

    def __init__(self, loaded: LoadedModel) -> None:
        """Freeze the model."""
        self.model = loaded.model
        self.chat = loaded.chat
        self.source = loaded.source
        self.context_length = loaded.context_length
        self.model.requires_grad_(False)
        self.switch = RoleSwitch()
        self.roles: dict[str, Role] = {}
        self._layers: dict[str, LoraLinear] = {}

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the base's weights and of activations."""
        return self.model.dtype

    @property
    def hidden_size(self) -> int:
        """Width of the states."""
        embeddings: Any = self.model.get_input_embeddings()
        return int(embeddings.weight.shape[1])

    def add_role(
        self,
        name: str,
        tune: LoraConfig | FullConfig | None,
        *,
        seed: int,
        head: bool = False,
        reads_apart: bool = False,
    ) -> None:
        """Add a role that starts as the base itself.

        Args:
            name: such as `policy`.
            tune: adapters, a full copy, or None for a head on the base as it is.
            seed: of the adapters' and head's random initialization.
            head: add a scalar head, N(0, 1/sqrt(width + 1)) with bias 0 (OpenAI 2019).
            reads_apart: it never reads a batch that other roles read (`num_lower_layers`).

        Raises:
            ConfigError: adapters on more layers than the model has.
        """
        role = Role(reads_apart=reads_apart)
        match tune:
            case LoraConfig():
                role.lora = tune
                first = self._first_adapted(tune)
                for path, layer in self._adapted_layers().items():
                    if _layer_number(path) >= first:
                        layer.add(name, tune.rank, tune.alpha / tune.rank, derive_seed(seed, path))
            case FullConfig():
                self.switch.role = None
                role.full_model = copy.deepcopy(self._without_adapters())
                role.full_model.requires_grad_(True)
            case None:
                pass
        if head:
            width = self.hidden_size
            layer = nn.Linear(width, 1, device=self.device, dtype=torch.float32)
            generator = torch.Generator().manual_seed(derive_seed(seed, "head"))
            weight = torch.randn(1, width, generator=generator) / math.sqrt(width + 1)
            with torch.no_grad():
                layer.weight.copy_(weight)
                layer.bias.zero_()
            role.head = layer
        self.roles[name] = role

    def hidden(self, role: str | None, batch: Batch) -> Tensor:
        """Return (B, S, H), the last layer's states of a batch under a role (None = reference).

        Of a role with a mask: (B, S, 2 H), beside them the states that the mask is made from, without gradient.
        """
        mask = self.mask(role)
        if mask is None:
            return self._states(role, batch)
        with torch.no_grad():
            beside = self._states(mask.role, batch)
        return torch.cat([self._states(role, batch), beside], dim=-1)

    def _states(self, role: str | None, batch: Batch) -> Tensor:
        network: Any = self.network(role)
        if batch.lower_states is not None:
            lora = None if role is None else self.roles[role].lora
            assert lora is None or self._first_adapted(lora) >= batch.num_lower_layers, f"{role!r} reads apart"
        if is_supported(network):
            return hidden_states(network, self.switch.role, batch)
        inputs: dict[str, Any] = {"input_ids": batch.ids, "use_cache": False}
        if batch.position_ids is not None:
            inputs["position_ids"] = batch.position_ids
        if (mask := batch.attention_mask()) is not None:
            # torch's attention takes True = may attend; the plain one of transformers adds the mask to the scores.
            is_plain = network.config._attn_implementation == "eager"
            inputs["attention_mask"] = (~mask).to(self.dtype) * torch.finfo(self.dtype).min if is_plain else mask
        return network.base_model(**inputs).last_hidden_state

    @property
    def num_lower_layers(self) -> int:
        """Number of layers below all adapters, which give every role the same; 0 where a role is a full copy.

        Roles that read apart do not count.
        """
        roles = [role for role in self.roles.values() if not role.reads_apart]
        firsts = [self._first_adapted(role.lora) for role in roles if role.lora is not None]
        is_copied = any(role.full_model is not None for role in roles)
        return 0 if is_copied or not is_supported(self.model) else min(firsts, default=0)

    def with_lower_states(self, batch: Batch, *, max_tokens: int, known: Sequence[Tensor | None] = ()) -> Batch:
        """Return the batch with what the layers below all adapters compute, so that no role computes it again.

        Args:
            batch: B rows of S tokens.
            max_tokens: tokens in one pass.
            known: B of (tokens - 1, H), if sampling has computed them (`Sampled.lower_states`). The last token's are
                left 0 then: nothing that is read before a token is drawn depends on them.

        Returns: the same batch where there are no such layers, or where a role is a full copy.
        """
        number = self.num_lower_layers
        if number == 0:
            return batch
        states = torch.zeros(*batch.ids.shape, self.hidden_size, dtype=self.dtype, device=self.device)
        if found := [one for one in known if one is not None]:
            assert [len(one) + 1 for one in found] == batch.lengths.tolist(), "one for each row, of its own tokens"
            for row, one in enumerate(found):
                states[row, : len(one)] = one
            return replace(batch, lower_states=states, num_lower_layers=number)
        with torch.no_grad():
            for rows in self.microbatches(batch.lengths.tolist(), max_tokens):
                part = hidden_states(self.model, None, batch.select(rows), num_layers=number)
                states[torch.tensor(rows, device=self.device), : part.shape[1]] = part
        return replace(batch, lower_states=states, num_lower_layers=number)

    def network(self, role: str | None) -> PreTrainedModel:
        """Return the model that computes a role, its adapters switched on (`switch.role` says whose those are)."""
        own = Role() if role is None else self.roles[role]
        self.switch.role = (own.through or role) if own.full_model is None else None
        return self.model if own.full_model is None else own.full_model

    def mask(self, role: str | None) -> Mask | None:
        """Return which tokens a role may write; None: all."""
        return None if role is None else self.roles[role].mask

    def support_fn(self, role: str | None) -> Callable[[Tensor], Tensor] | None:
        """Return what maps states (N, 2 H) of a role with a mask to (N, V) bool, True = it may write the token."""
        mask = self.mask(role)
        if mask is None:
            return None
        logits = self.logits_fn(mask.role)

        @torch.no_grad()
        def support(states: Tensor) -> Tensor:
            return nucleus(logits(states[:, self.hidden_size :]), mask.top_p)

        return support

    def logits_fn(self, role: str | None, *, pack_rows: int | None = None) -> Callable[[Tensor], Tensor]:
        """Return the output layer of a role: states (N, H) to logits (N, V), guided where the role has a guide.

        With `pack_rows` its weight is packed for about so many states a call (`lm.products`), without gradient.
        """
        own = Role() if role is None else self.roles[role]
        network: Any = self.network(role)
        layer = network.get_output_embeddings()
        is_linear = type(layer) is nn.Linear
        weight = packed(layer.weight, pack_rows) if is_linear and pack_rows is not None else layer.weight
        config = network.config
        soft_cap = getattr(config, "final_logit_softcapping", None)
        scale = getattr(config, "logit_scale", None) or 1.0
        scale /= getattr(config, "logits_scaling", None) or 1.0

        def logits(states: Tensor) -> Tensor:
            if own.mask is not None:
                states = states[:, : self.hidden_size]
            values = linear(states, weight, layer.bias) if is_linear else layer(states)
            if scale != 1.0:
                values = values * scale
            values = values if soft_cap is None else torch.tanh(values / soft_cap) * soft_cap
            return values if own.guide is None else own.guide(states, values)

        return logits

    @property
    def computes_padding(self) -> bool:
        """Whether padding goes through the layers like tokens; models built like llama leave it out."""
        return not is_supported(self.model)

    def microbatches(self, lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
        """Cut rows as is cheapest for this model (`lm.batch.microbatches`)."""
        return microbatches(lengths, max_tokens, padded=self.computes_padding)

    def padding_waste(self, lengths: Sequence[int], groups: Sequence[Sequence[int]]) -> float:
        """Return the share of positions that went through the layers and hold no token."""
        return padding_waste(lengths, groups) if self.computes_padding else 0.0

    def head(self, role: str, states: Tensor) -> Tensor:
        """Return (N,) fp32, the role's scalar for each of (N, H) states."""
        head = self.roles[role].head
        assert head is not None, f"role {role!r} has no head"
        return head(states.float()).squeeze(-1)

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """Return the trainable parameters of a role by name."""
        found: dict[str, nn.Parameter] = {}
        own = self.roles[role]
        if own.full_model is not None:
            found.update(own.full_model.named_parameters())
        for path, layer in self._layers.items():
            if role in layer.scale:
                found[f"{path}.lora_A"], found[f"{path}.lora_B"] = layer.down[role], layer.up[role]
        if own.head is not None:
            found.update({f"head.{name}": value for name, value in own.head.named_parameters()})
        return found

    def state(self, role: str) -> dict[str, Tensor]:
        """Return copies of a role's parameters, on the CPU, by name."""
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in self.parameters(role).items()}

    def load_state(self, role: str, tensors: dict[str, Tensor]) -> None:
        """Set a role's parameters from `state`.

        Raises:
            ValueError: names or shapes differ; the message lists them.
        """
        own = self.parameters(role)
        odd = sorted(set(own) ^ set(tensors)) or sorted(
            name for name, value in own.items() if value.shape != tensors[name].shape
        )
        if odd:
            raise ValueError(f"role {role!r}: parameters do not match: {', '.join(odd[:4])}")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(tensors[name])

    def merged_weights(self, role: str | None) -> dict[str, Tensor]:
        """Return the plain weights of a role (None = reference) by plain name, adapters added in fp32, then cast."""
        network = self.network(role)
        adapters = tuple(f"{path}.{part}." for path in self._layers for part in ("down", "up"))
        plain_names = {f"{path}.base.": f"{path}." for path in self._layers}
        tensors: dict[str, Tensor] = {}
        for name, value in network.state_dict().items():
            if not name.startswith(adapters):
                wrapped, _, leaf = name.rpartition(".")
                tensors[plain_names.get(f"{wrapped}.", f"{wrapped}.") + leaf] = value
        if role is not None and self.roles[role].lora is not None:
            for path, layer in self._layers.items():
                if role in layer.scale:
                    weight: Any = layer.base.weight
                    total = weight.float() + layer.delta(role)
                    tensors[f"{path}.weight"] = total.detach().to(weight.dtype)
        return tensors

    def adapted_paths(self, role: str) -> Iterator[str]:
        """Yield the path of every linear layer that a role has an adapter on."""
        yield from (path for path, layer in self._adapted_layers().items() if role in layer.scale)

    @property
    def has_transposed_layers(self) -> bool:
        """Whether adapted layers keep their weights as (in, out)."""
        return any(layer.is_transposed for layer in self._layers.values())

    def _first_adapted(self, tune: LoraConfig) -> int:
        """Return the number of the first transformer layer that gets adapters."""
        count = 1 + max(_layer_number(path) for path in self._adapted_layers())
        return count - num_top_layers(tune.top_layers, count)

    def _adapted_layers(self) -> dict[str, LoraLinear]:
        """Wrap every linear layer of the transformer blocks (not the output layer), once."""
        if not self._layers:
            output = self.model.get_output_embeddings()
            targets = [
                (path, module)
                for path, module in self.model.named_modules()
                if isinstance(module, nn.Linear | Conv1D) and module is not output
            ]
            for path, module in targets:
                parent = self.model.get_submodule(path.rpartition(".")[0])
                layer = LoraLinear(module, self.switch)
                setattr(parent, path.rpartition(".")[2], layer)
                self._layers[path] = layer
        return self._layers

    def _without_adapters(self) -> PreTrainedModel:
        """Return the base with plain layers in place of adapted ones; adapted layers come back on the next use."""
        assert not self._layers, "add full-copy roles before adapter roles"
        return self.model


def _layer_number(path: str) -> int:
    """Return the number of the transformer layer that a module belongs to, such as 3 of `model.layers.3.mlp`."""
    return next((int(part) for part in path.split(".") if part.isdigit()), -1)
