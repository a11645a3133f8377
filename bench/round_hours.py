"""What a round costs on one GPU, phase by phase, by arithmetic: the last table of docs/rounds.md.

    python bench/round_hours.py

Nothing is measured here. Operations are counted by bench/plan.py. A server's sampling rate is an
assumption (`--rate`, tokens a second from a model of 8B parameters on an H100 under vLLM, many
requests at a time); a policy in 4 bits sampled without one is a tenth of that.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace

from plan import PASSES, Data, Plan, Shape, hours

RATE = 4000.0
LLAMA_8B = Shape(vocabulary=128_256)
GEMMA_9B = Shape(hidden=3584, inner=14336, layers=42, keys=2048, vocabulary=256_000)


@dataclass(frozen=True)
class Round:
    """One round of a recipe.

    Attributes:
        name: of the recipe.
        plan: prompts, answers and the policy's shape; its references count.
        trained: answers of a group that the objective sees.
        kind: of finetuning.
        rate: tokens a second that are sampled.
        reward: shape of the reward model.
    """

    name: str
    plan: Plan
    trained: int
    kind: str = "full"
    rate: float = RATE
    reward: Shape = LLAMA_8B

    def seconds(self) -> dict[str, float]:
        """Of each phase."""
        data, useful = self.plan.data, self.plan.peak * self.plan.share
        answers = data.prompts * data.responses
        alone = replace(data, prompts=answers, responses=1)
        seen = replace(data, responses=self.trained)
        once = seen.prompts * seen.operations(self.plan.shape) / useful
        every = data.prompts * data.operations(self.plan.shape) / useful
        return {
            "sample": answers * data.response / self.rate,
            "score": answers * alone.operations(self.reward) / useful,
            "precompute": self.plan.references * every,
            "train": (PASSES[self.kind] + 1) * once,
        }


def rounds(rate: float) -> Iterator[Round]:
    """The recipes of recipes/papers that sample."""
    ultra = Data(responses=5)
    third = replace(ultra, prompts=20_378)
    eight = Plan(data=ultra, shape=LLAMA_8B, references=1)
    yield Round("mpo-table-2, one H100", eight, trained=4, rate=rate)
    yield Round("mpo-table-3, one H100", replace(eight, data=third), trained=4, rate=rate)
    nine = Plan(data=third, shape=GEMMA_9B, references=3)
    yield Round("mnpo, round 3, one H100", nine, trained=2, rate=rate * 8 / 9)
    small = Plan(
        data=replace(ultra, prompts=2_178, responses=4), references=3, peak=165e12, share=0.3
    )
    yield Round(
        "mrpo-table-1-sampled rlhf on S3, one RTX 4090",
        small, trained=4, kind="lora", rate=rate / 10,
    )  # fmt: skip


def table(rate: float = RATE) -> str:
    """A line a recipe, as Markdown."""
    lines = [
        "| a round of | sample | score | precompute | train | all |",
        "|---|---|---|---|---|---|",
    ]
    for each in rounds(rate):
        seconds = each.seconds()
        cells = [hours(value / 3600) for value in (*seconds.values(), sum(seconds.values()))]
        lines.append(f"| {each.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=RATE)
    print(table(parser.parse_args().rate))
