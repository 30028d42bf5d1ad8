"""Value checks of ILQL's loss, of best-of-n, and of the nucleus; see checks.py."""

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tests.core.samples import NAN, close, flags, random_rows, row
from tests.reference import offline

# --------------------------------------------------------------------------------------- nucleus


def check_token_logprobs_of_some_tokens(module: ModuleType) -> None:
    # The states are the logits: softmax of (ln 1, ln 2, ln 4) over tokens 0 and 2 is (1/5, 4/5); they have 5 of 7.
    hidden = torch.tensor([[[0.0, math.log(2), math.log(4)]] * 3], dtype=torch.float64)
    zero = torch.zeros_like(hidden)
    output = module.MaskedLogits(lambda h: h, lambda h: torch.tensor([True, False, True]).expand(len(h), -1))

    def read(token: int) -> Any:
        ids = torch.tensor([[0, token, token]])
        return module.token_logprobs(
            hidden, ids, flags(".x."), output, with_entropy=True, reference=(zero, lambda h: h)
        )

    close(read(2).logprobs, [[0.0, math.log(4 / 5), 0.0]])
    close(read(2).entropy, [[0.0, -(0.2 * math.log(0.2) + 0.8 * math.log(0.8)), 0.0]])
    close(read(2).log_mass, [[0.0, math.log(5 / 7), 0.0]])
    # The reference is uniform over all three.
    close(read(2).kl, [[0.0, 0.2 * math.log(0.6) + 0.8 * math.log(2.4), 0.0]])
    # A token outside counts as if it had been inside: 2 of 1 + 2 + 4.
    close(read(1).logprobs, [[0.0, math.log(2 / 7), 0.0]])
    close(read(1).log_mass, [[0.0, 0.0, 0.0]])
    assert (
        module.token_logprobs(hidden, torch.zeros(1, 3, dtype=torch.long), flags(".x."), lambda h: h).log_mass is None
    )


def check_nucleus(module: ModuleType) -> None:
    # .5 < .7 <= .5 + .3; just .5 suffices for .5; and all are needed for .9.
    logits = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64).log() + 3.0
    close(module.nucleus(logits, 0.7), [[0, 1, 1]])
    close(module.nucleus(logits, 0.5), [[0, 1, 0]])
    close(module.nucleus(logits, 0.9), [[1, 1, 1]])


# ------------------------------------------------------------------------------------------ ilql


def check_next_values(module: ModuleType) -> None:
    close(module.next_values(row(NAN, 1.0, 2.0, 3.0, NAN), flags(".xxx.")), [[0.0, 2.0, 3.0, 0.0, 0.0]])


def check_expectile(module: ModuleType) -> None:
    close(module.expectile_loss(row(2.0, -1.0, 0.0), 0.75), [[3.0, 0.25, 0.0]])


def _loss(module: ModuleType, read: dict[str, Any], denominator: float = 2.0, **changes: float) -> dict[str, Tensor]:
    settings = {"gamma": 0.5, "expectile": 0.8, "cql_coef": 0.1, "awac_coef": 2.0, "awac_beta": 0.0}
    result = module.ilql_loss(module.IlqlTensors(**read), **{**settings, **changes}, denominator=denominator)
    return {"loss": result.loss, **result.metrics}


def _small() -> dict[str, Any]:
    half, quarter = math.log(0.5), math.log(0.25)
    return {
        "q_values": [row(NAN, 1.0, 3.0, NAN), row(NAN, 2.0, 1.0, NAN)],
        "q_logprobs": [row(NAN, half, half, NAN), row(NAN, quarter, half, NAN)],
        "target_q_values": [row(NAN, 0.5, -1.0, NAN), row(NAN, 0.3, 2.0, NAN)],
        "values": row(NAN, 0.1, 0.4, NAN),
        "policy_logprobs": row(NAN, half, quarter, NAN),
        "rewards": row(NAN, 0.0, 1.0, NAN),
        "completion_mask": flags(".xx."),
    }


def check_ilql(module: ModuleType) -> None:
    # Token 1: goal 0 + .5 * .4 = .2, Q errors .8 and 1.8; least target .3, V .1: error .2 counts .8.
    # Token 2: goal 1 + 0, Q errors 2 and 0; least target -1, V .4: error -1.4 counts .2.
    two = math.log(2)
    q_loss = (0.64 + 3.24 + 4.0 + 0.0) / 2
    value_loss = (0.8 * 0.04 + 0.2 * 1.96) / 2
    found = _loss(module, _small())
    close(found["q_loss"], q_loss)
    close(found["value_loss"], value_loss)
    close(found["cql_loss"], (3 * two + 2 * two) / 2)
    close(found["awac_loss"], 1.5 * two)
    close(found["loss"], q_loss + value_loss + 0.1 * 2.5 * two + 2 * 1.5 * two)
    close(found["q_mean"], -0.35)
    close(found["value_mean"], 0.25)
    close(found["advantage_mean"], -0.6)
    # Weights e^(5 * .2) and e^(5 * -1.4); then e^20 at most.
    close(_loss(module, _small(), awac_beta=5.0)["awac_loss"], (math.e * two + math.exp(-7) * 2 * two) / 2)
    close(_loss(module, _small(), awac_beta=1000.0)["awac_loss"], math.exp(20) * two / 2)


def check_ilql_at_random(module: ModuleType) -> None:
    mask, normals = random_rows(23, 9)
    names = ("q", "logprob", "target")
    heads = [dict(zip(names, normals[start : start + 3], strict=True)) for start in (0, 3)]
    others = dict(zip(("value", "reward", "policy"), normals[6:], strict=True))
    settings = {"gamma": 0.9, "expectile": 0.7, "cql_coef": 0.3, "awac_coef": 0.6, "awac_beta": 0.5}
    lists = [{name: value.tolist() for name, value in head.items()} for head in heads]
    rows = {name: value.tolist() for name, value in (others | {"mask": mask}).items()}
    expected = offline.ilql(lists, rows, settings)
    read = {
        "q_values": [head["q"] for head in heads],
        "q_logprobs": [head["logprob"] for head in heads],
        "target_q_values": [head["target"] for head in heads],
        "values": others["value"],
        "policy_logprobs": others["policy"],
        "rewards": others["reward"],
        "completion_mask": mask,
    }
    actual = _loss(module, read, denominator=3.0, **settings)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        close(actual[name], value / 3)


def check_ilql_gradient(module: ModuleType) -> None:
    # Of the sums over two tokens, halved. Q: the errors. V: -.8 * .2 and -.2 * -1.4, nothing through the goal or the
    # weights. Policy: -2 e^(advantage) / 2. Targets and rewards: none.
    small = _small()
    read: dict[str, Any] = {
        name: [q.nan_to_num() for q in value] if isinstance(value, list) else value for name, value in small.items()
    }
    for name in ("values", "policy_logprobs", "rewards"):
        read[name] = read[name].nan_to_num().requires_grad_()
    for name in ("q_values", "q_logprobs", "target_q_values"):
        read[name] = [q.requires_grad_() for q in read[name]]
    _loss(module, read, awac_beta=1.0)["loss"].backward()
    learned = [*read["q_values"], *read["q_logprobs"], read["values"], read["policy_logprobs"]]
    assert all(tensor.grad is not None for tensor in learned)
    close(read["q_values"][0].grad, [[0.0, 0.8, 2.0, 0.0]])
    close(read["q_values"][1].grad, [[0.0, 1.8, 0.0, 0.0]])
    close(read["q_logprobs"][1].grad, [[0.0, -0.05, -0.05, 0.0]])
    close(read["values"].grad, [[0.0, -0.16, 0.28, 0.0]])
    close(read["policy_logprobs"].grad, [[0.0, -math.exp(0.2), -math.exp(-1.4), 0.0]])
    assert read["rewards"].grad is None
    assert [target.grad for target in read["target_q_values"]] == [None, None]


# ------------------------------------------------------------------------------------- best of n


def check_best_of_n_kl(module: ModuleType) -> None:
    close(module.best_of_n_kl(1), 0.0)
    close(module.best_of_n_kl(4), math.log(4) - 0.75)


def check_best_of_n_logprobs(module: ModuleType) -> None:
    # Scores 0, 1, 1 with probabilities 1/2, 3/8, 1/8: score 0 is the best of two with 1/4, the rest goes 3 to 1.
    logprobs = torch.tensor([0.5, 0.375, 0.125], dtype=torch.float64).log()
    scores = torch.tensor([0.0, 1.0, 1.0])
    close(module.best_of_n_logprobs(logprobs, scores, 2).exp(), [0.25, 0.5625, 0.1875])
    close(module.best_of_n_logprobs(logprobs, scores, 1), logprobs)
    generator = torch.Generator().manual_seed(3)
    for n in (2, 4):
        logprobs = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0)
        scores = torch.randint(3, (5,), generator=generator)
        expected = offline.best_of_n(logprobs.exp().tolist(), scores.tolist(), n)
        close(module.best_of_n_logprobs(logprobs, scores, n).exp(), expected)


def check_expected_best_of_n(module: ModuleType) -> None:
    # Of 1, 2, 4 two at a time: 2, 4, 4.
    close(module.expected_best_of_n(torch.tensor([4.0, 1.0, 2.0]), 2), 10 / 3)
    scores = torch.tensor([[1.5, -2.0, 0.25, 3.0, 1.5], [0.0, 0.0, -1.0, 7.0, 2.0]])
    for n in (1, 2, 3, 5):
        close(module.expected_best_of_n(scores, n), [offline.expected_best(one, n) for one in scores.tolist()])


def check_soft_choice(module: ModuleType) -> None:
    # exp(ln 3 * 2 / 2): 1 to 3; and two of one score.
    scores = torch.tensor([[0.0, 2 * math.log(3)], [5.0, 5.0]], dtype=torch.float64)
    close(module.soft_choice_logprobs(scores, 2.0).exp(), [[0.25, 0.75], [0.5, 0.5]])
