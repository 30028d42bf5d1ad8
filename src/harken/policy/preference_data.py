"""What the loss on preferences learns from: pairs, or completions that are good or bad each by itself, as tokens."""

from collections.abc import Sequence

from harken.config import DpoConfig, KtoLossConfig, PreferenceLoss
from harken.errors import DataError
from harken.lm.batch import Tokens
from harken.lm.trunk import Trunk
from harken.policy.preference_step import Group
from harken.policy.sft import draw_subset
from harken.progress import Reporter
from harken.records import LabeledCompletion, PreferencePair

Item = PreferencePair | LabeledCompletion
Data = Sequence[PreferencePair] | Sequence[LabeledCompletion]


def prepare(data: Data, config: DpoConfig) -> tuple[list[Item], list[Item]]:
    """Return what is learned and what is only measured: pairs, or for KTO single completions.

    Raises:
        DataError: there is nothing to train on, or the loss needs pairs and there are none.
    """
    items: list[Item] = [item for item in data if item.weight > 0]
    if isinstance(config.loss, KtoLossConfig):
        items = [part for item in items for part in taken_apart(item, config)]
    elif any(isinstance(item, LabeledCompletion) for item in items):
        raise DataError(
            f"the loss {config.loss.kind!r} needs preference pairs and was given labeled completions; use `harken kto`"
        )
    train = [item for item in items if item.split == "train"]
    train = [train[index] for index in draw_subset(len(train), config.max_pairs, config.seed)]
    if not train:
        raise DataError("no pairs with split 'train' and a weight above zero; give at least one")
    return train, [item for item in items if item.split == "heldout"]


def taken_apart(item: Item, config: DpoConfig) -> list[LabeledCompletion]:
    """Return the two sides of a pair as completions that are good or bad, with the pair's label."""
    if isinstance(item, LabeledCompletion):
        return [item]
    label = label_of(item, config)
    return [
        LabeledCompletion(
            id=f"{item.id}/{side}",
            prompt=item.prompt,
            completion=message,
            soft_label=value,
            weight=item.weight,
            split=item.split,
            judgment_ids=item.judgment_ids,
        )
        for side, message, value in (("chosen", item.chosen, label), ("rejected", item.rejected, 1.0 - label))
    ]


def label_of(item: Item, config: DpoConfig) -> float:
    """Return the label that is learned: the record's own, or the certain one nearest to it."""
    if config.soft_labels:
        return item.soft_label
    return 1.0 if isinstance(item, PreferencePair) else float(item.soft_label >= 0.5)


def check_balance(train: Sequence[Item], loss: PreferenceLoss, reporter: Reporter) -> None:
    """Say so when good and bad completions have weights that KTO's authors advise against."""
    if not isinstance(loss, KtoLossConfig):
        return
    good = loss.good_weight * sum(item.soft_label * item.weight for item in train)
    bad = loss.bad_weight * sum((1.0 - item.soft_label) * item.weight for item in train)
    if not bad <= good <= bad * 4 / 3:
        reporter.say(
            f"kto: the good completions weigh {good:.6g}, the bad ones {bad:.6g} (weight x number); 1 to 1.33 times as "
            "much is advised: set loss.good_weight or loss.bad_weight"
        )


def encode(trunk: Trunk, items: Sequence[Item], config: DpoConfig) -> list[Group]:
    """Return token ids of both completions of each item; one that is too long is an error that names it.

    The second completion of a labeled one is that of the next item with another prompt whose completion fits behind
    this prompt: it stands for what the policy writes regardless of the prompt. If there is none it is its own.
    """
    limit = min(config.max_length, trunk.context_length)
    found: list[Group] = []
    for item in items:
        prompt = trunk.chat.encode_prompt(item.prompt, max_length=limit)
        sides = (item.chosen, item.rejected) if isinstance(item, PreferencePair) else (item.completion,)
        group = tuple(Tokens(prompt, trunk.chat.encode_completion(side.content)) for side in sides)
        longest = max(tokens.size for tokens in group)
        if longest > limit:
            name = "pair" if isinstance(item, PreferencePair) else "completion"
            raise DataError(
                f"{name} {item.id!r} has {longest} tokens, the limit is {limit}; raise max_length (the model's context "
                f"permitting) or leave the {name} out: nothing is cut silently"
            )
        found.append(group)
    if found and len(found[0]) == 1:
        return [(own, _mismatched(found, row, limit)) for row, (own, *_) in enumerate(found)]
    return found


def _mismatched(found: Sequence[Group], row: int, limit: int) -> Tokens:
    """Return the prompt of a row with the completion of the next row that has another prompt."""
    prompt = found[row][0].prompt
    for distance in range(1, len(found)):
        other = found[(row + distance) % len(found)][0]
        if other.prompt != prompt and len(prompt) + len(other.completion) <= limit:
            return Tokens(prompt, other.completion)
    return found[row][0]
