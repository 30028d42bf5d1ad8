"""The graph of RandomWalks, its walks, what one is worth, and what methods must reach (from trlX)."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harken.records import Completion, Demonstration, Message, Prompt

GOAL = 0
NODES, LENGTH, WALKS, EDGE_SHARE, SEED = 21, 10, 1000, 0.1, 1000


@dataclass(frozen=True)
class Graph:
    """Who is connected with whom, the random walks, and how far each node is from the goal."""

    edges: NDArray[np.bool_]
    walks: tuple[str, ...]
    distances: tuple[int, ...]
    """Nodes on a shortest way to the goal, both ends counted; LENGTH where there is none."""

    @property
    def starts(self) -> list[str]:
        """Return the nodes that walks begin at."""
        return [letter(node) for node in range(NODES) if node != GOAL]

    @property
    def prompts(self) -> list[Prompt]:
        """Return one prompt for each start."""
        return [Prompt(id=start, messages=(Message(role="user", content=start),)) for start in self.starts]

    @property
    def demonstrations(self) -> list[Demonstration]:
        """Return the walks, each as its first node and what follows."""
        return [
            Demonstration(
                id=str(number),
                prompt=Prompt(id=walk[0], messages=(Message(role="user", content=walk[0]),)),
                completion=Message(role="assistant", content=walk[1:]),
            )
            for number, walk in enumerate(self.walks)
        ]

    def optimality(self, walk: str) -> float:
        """Return the score of a walk in [0, 1]; what stands behind the goal does not count."""
        nodes = [ord(one) - ord("a") for one in walk]
        length = LENGTH
        for place, node in enumerate(nodes):
            if not 0 <= node < NODES or (place and not self.edges[nodes[place - 1], node]):
                break
            if node == GOAL:
                length = min(place + 1, LENGTH)
                break
        return (LENGTH - length) / (LENGTH - self.distances[nodes[0]])

    def reward(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        """Score completions, as a reward does."""
        pairs = zip(prompts, completions, strict=True)
        return [self.optimality(prompt.messages[0].content + item.message.content) for prompt, item in pairs]


def letter(node: int) -> str:
    """Return the name of a node."""
    return chr(ord("a") + node)


def make_graph(seed: int = SEED) -> Graph:
    """Draw graph and walks; the order of the draws is trlX's, so that the walks are."""
    draw = np.random.RandomState(seed)
    while True:
        edges = draw.rand(NODES, NODES) > 1 - EDGE_SHARE
        np.fill_diagonal(edges, val=False)
        if edges.any(axis=1).all():
            break
    edges[GOAL] = False
    edges[GOAL, GOAL] = True
    walks: list[str] = []
    for _ in range(WALKS):
        node = draw.randint(NODES)
        while node == GOAL:
            node = draw.randint(NODES)
        walk = letter(node)
        while len(walk) < LENGTH and node != GOAL:
            node = int(draw.choice(np.nonzero(edges[node])[0]))
            walk += letter(node)
        walks.append(walk)
    return Graph(edges, tuple(walks), distances_to_goal(edges))


def distances_to_goal(edges: NDArray[np.bool_]) -> tuple[int, ...]:
    """Return for each node the nodes on a shortest way to the goal, at most LENGTH."""
    found = {GOAL: 1}
    waiting = deque([GOAL])
    while waiting:
        node = waiting.popleft()
        for before in np.nonzero(edges[:, node])[0].tolist():
            if before not in found:
                found[before] = found[node] + 1
                waiting.append(before)
    return tuple(min(found.get(node, LENGTH), LENGTH) for node in range(NODES))


def check(found: Mapping[str, Any]) -> dict[str, bool]:
    """Return which of the three claims that can be judged hold for one seed."""
    score = {name: row["optimality"] for name, row in found.items()}
    claims: dict[str, bool] = {}
    if "ppo" in score:
        claims["PPO reaches 0.95"] = score["ppo"] >= 0.95
    if "ilql" in score:
        claims["ILQL with beta 100 gains 0.15"] = score["ilql"]["beta 100"] >= score["imitation"] + 0.15
    if {"ppo", "nlpo"} <= score.keys():
        # Each optimality has a standard error below 0.01.
        claims["NLPO is no worse than PPO"] = score["nlpo"] >= score["ppo"] - 0.01
    return claims
