"""`mrpo demo --rounds N`: the loop of sampling and training on the demo's models.

The policy is rewarded by a tiny reward model, which can be fooled; the rule that knows the right
answers is held out. Two experiments differ in one thing: whether the policies of earlier rounds are
references beside the first one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mrpo_tools.groups import in_split
from mrpo_tools.sources import load_groups

REWARD = Path("models", "reward")
SCORERS = f"""\
scorers:
  reward: {{model: {REWARD}, dtype: float32}}
  marks: {{rule: "mrpo_tools.demo.tasks:score"}}
"""
RECIPE = """\
# The demo's rounds: the best of five answers against the worst, by a tiny reward model.
loss: mpo
beta: 1
chosen: top_bottom
top_bottom: 1
score: reward
held_out_score: marks
finetuning: lora
lora_r: 8
lora_alpha: 16
learning_rate: 1e-3
per_device_train_batch_size: 8
gradient_accumulation_steps: 2
logging_steps: 15
"""
PLAN = """\
rounds:
  policy: llama
  n: 5
  prompts: 300
  max_new_tokens: 32
"""
EXPERIMENTS = {
    "first": "",
    "history": "  references: [base, history]\n",
}
"""By name: what its plan has beside the other's."""
COMBINATION = """\
combine: geometric       # over the first policy and those of earlier rounds, each the same
weights: uniform
trust_region: none
"""


def prepare_rounds() -> None:
    """Make the reward model, and write the recipes, in the demo's directory; made once."""
    project = Path("mrpo.yaml")
    text = project.read_text(encoding="utf-8")
    if SCORERS not in text:
        project.write_text(text + SCORERS, encoding="utf-8")
    for name, references in EXPERIMENTS.items():
        combination = COMBINATION if references else ""
        words = RECIPE + combination + PLAN + references
        Path(f"rounds-{name}.yaml").write_text(words, encoding="utf-8")
    if (REWARD / "model.safetensors").exists():
        return
    from mrpo_tools.demo.tiny_reward import make_reward_model

    make_reward_model(REWARD, in_split(load_groups("demo.jsonl").groups, "train"))


def run_rounds(typed: Callable[[list[str]], None], count: int) -> None:
    """Both experiments, by the command a user would type."""
    for name in EXPERIMENTS:
        output = f"rounds/{name}"
        typed(["round", f"rounds-{name}.yaml", "--rounds", str(count), "--output", output])
