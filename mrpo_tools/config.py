"""The words a user writes: the project file, a reference, a recipe.

`mrpo.yaml` names the data set, the cache and the references of a project. A recipe (YAML too)
determines a training run. Keys are those of Hugging Face and TRL where they have one. Unknown keys
and wrong types are refused, all of them together. A number may be written as text, which is how
YAML reads `1e-5`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from mrpo_tools import words
from mrpo_tools.errors import UsageError, did_you_mean
from mrpo_tools.files import shipped

DEFAULT_CACHE = "cache"
PROJECT_FILE = "mrpo.yaml"
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ALIASES = {
    "llama": "meta-llama/Llama-2-7b-chat-hf",
    "mistral": "teknium/OpenHermes-2.5-Mistral-7B",
    "qwen": "Qwen/Qwen1.5-7B-Chat",
}
"""Outside a project: the references of the MRPO paper (Table 1), 7B parameters each."""


Place = Annotated[int, Field(ge=0)] | Literal["cpu"]
"""A GPU by its number among those that are seen, or the memory of the machine."""
Size = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^\d+(\.\d+)?[KMG]i?B$")]
"""Bytes, as a number or as `40GiB` or `40GB`."""
URL_SECRETS = re.compile(
    r"""(://)[^/\s'"]*@|(://[^\s'"?#]*[?#])[^\s'"]*|(?<![^\s'"])[^\s/'"@:]+:[^\s/'"]*@"""
)
"""What stands in a URL before an `@` or after a `?`, and may be a key."""
SERVED_WORDS = (
    "server", "engine", "server_model", "served_quantization", "logprobs_mode", "calibration",
    "concurrency", "timeout",
)  # fmt: skip
"""Words of a reference whose weights a server has."""
OF_WEIGHTS_HERE = ("quantization", "autocast", "device_map", "stream_layers", "sweep_tokens")
"""Words that go with none of these."""
OTHER_ENGINES = frozenset(
    {"sglang", "llama.cpp", "llamacpp", "llama-cpp", "tgi", "ollama", "lmdeploy", "tensorrt-llm",
     "trtllm", "openai", "mlx", "exllama", "aphrodite"}
)  # fmt: skip
"""Engines that somebody may think of, whose protocols are not built."""


class Words(BaseModel):
    """A part of a file that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Reference(Words):
    """A frozen model and everything about it that its log-probs depend on.

    `dtype` None means the device's own: bfloat16 on an accelerator, float32 on a CPU. `autocast` is
    the format of products where it is narrower than the weights', as full finetuning has it; None
    means that of the weights. `max_length` None means the model's context length; `batch_tokens`
    None means what suits the device. `max_prompt_length` is how much of a prompt is left by
    `overlong: keep_end`, and goes with it alone. `device_map` None means one device where the model
    fits it, and several where it does not; `max_memory` is what its weights may take of each, in
    transformers' words: `{0: 40GiB, 1: 40GiB, cpu: 100GiB}`. `stream_layers` reads the model a
    layer at a time; None does so where nothing holds it. `sweep_tokens` then share one reading of
    the layers; None takes what hides the reading. `attention`, `batch_tokens` and these four change
    no numbers; every other field is part of the reference's identity.

    With a `server` the weights are there, and words of it go with it: the `engine` that it runs,
    `server_model` for what it calls the model, `served_quantization` and `logprobs_mode` for how it
    was started, `calibration`, `concurrency` and `timeout` for how it is asked. `dtype` is then the
    server's and must be said. Where it is and how it is asked is no part of the identity.
    """

    model: str
    revision: str | None = None
    adapter: str | None = None
    dtype: words.Dtype | None = None
    autocast: words.Dtype | None = None
    quantization: words.Quantization | None = None
    max_length: int | None = Field(default=None, ge=8)
    max_prompt_length: int | None = Field(default=None, ge=2)
    overlong: words.Overlong = "skip"
    system: words.System = "fold"
    added_tokens: words.AddedTokens = "plain"
    chat_template: str | None = None
    trust_remote_code: bool = False
    attention: words.Attention = "auto"
    batch_tokens: int | None = Field(default=None, ge=16)
    device_map: words.DeviceMap | None = None
    max_memory: dict[Place, Size] | None = Field(default=None, min_length=1)
    stream_layers: bool | None = None
    sweep_tokens: int | None = Field(default=None, ge=16)

    @model_validator(mode="after")
    def _says_what_the_limits_are_of(self) -> Reference:
        if self.max_memory is not None and self.device_map is None:
            raise ValueError("max_memory goes with device_map: auto alone")
        if self.device_map and self.stream_layers:
            raise ValueError("device_map and stream_layers are two ways: one of them")
        return self

    server: str | None = None
    engine: words.ServedEngine | None = None
    server_model: str | None = None
    served_quantization: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    logprobs_mode: words.LogprobsMode | None = None
    calibration: words.Calibration | None = None
    concurrency: int | None = Field(default=None, ge=1)
    timeout: float | None = Field(default=None, gt=0)

    @field_validator("server")
    @classmethod
    def _holds_no_secret(cls, value: str | None) -> str | None:
        """Words of a reference stand in the records of parts and runs."""
        if value is not None and any(mark in value for mark in "@?#"):
            raise ValueError(
                "the URL holds more than host and path, and would stand in records; a key is "
                "MRPO_SERVER_KEY in the environment"
            )
        return value

    @field_validator("engine", mode="before")
    @classmethod
    def _is_built(cls, value: object) -> object:
        if isinstance(value, str) and value.lower() in OTHER_ENGINES:
            raise ValueError(
                "log-probs of a reference can be asked of vllm alone; the other engines' protocols "
                "are not built"
            )
        return value

    @model_validator(mode="after")
    def _is_of_a_server_or_not(self) -> Reference:
        said = [word for word in SERVED_WORDS if getattr(self, word) is not None]
        if self.server is None and said:
            raise ValueError(f"{said[0]} goes with server alone")
        if self.server is None:
            return self
        if self.dtype is None:
            raise ValueError("a server does not say its dtype: dtype: bfloat16, as it was started")
        here = [word for word in OF_WEIGHTS_HERE if getattr(self, word) is not None]
        if here:
            hint = "; served_quantization is the server's" if "quantization" in here else ""
            raise ValueError(f"{here[0]} is of weights that are loaded here, not served{hint}")
        return self

    @model_validator(mode="after")
    def _says_how_much_is_kept(self) -> Reference:
        if self.overlong == "keep_end" and self.max_prompt_length is None:
            raise ValueError(
                "overlong keep_end needs max_prompt_length: how much of a prompt stays"
            )
        if self.overlong != "keep_end" and self.max_prompt_length is not None:
            raise ValueError("max_prompt_length goes with overlong: keep_end alone")
        return self


class ScoringRule(Words):
    """A function of the user's own that gives marks to an answer, `MODULE:FUNCTION`.

    `full_marks` None takes the function's own attribute of that name, if it has one.
    """

    rule: str
    full_marks: float | None = None


class ScoringJudge(Words):
    """A model behind an OpenAI-compatible chat endpoint that rates answers, `URL#MODEL`.

    `template` is a preset or a file whose labels are ratings.
    """

    judge: str
    template: str = "rating"
    max_tokens: int = Field(default=1024, ge=1)
    concurrency: int = Field(default=16, ge=1)
    timeout: float = Field(default=600.0, gt=0)


def _kind_of_scorer(value: object) -> str:
    fields = value if isinstance(value, Mapping) else vars(value) if value is not None else {}
    return "rule" if "rule" in fields else "judge" if "judge" in fields else "reward"


ScorerWords = Annotated[
    Annotated[Reference, Tag("reward")]
    | Annotated[ScoringRule, Tag("rule")]
    | Annotated[ScoringJudge, Tag("judge")],
    Discriminator(_kind_of_scorer),
]
"""A scorer: a reward model has the words of a reference."""


class Dataset(Words):
    """Preference data: where it is and how it is read and split.

    `test_size` None means the share its paper used for a named data set, else 0. `validation_size`
    is the share of the prompts in `train` that go to `validation`. `limit` takes the first groups
    of each split, so many. `skip_bad` leaves rows out that have problems; without it one bad row
    refuses the data. `keep_status` keeps sampled answers of these statuses, which are left out
    otherwise.
    """

    source: str
    adapter: str | None = None
    map: dict[str, str] | None = None
    score: str | None = None
    test_size: float | None = Field(default=None, ge=0, lt=1)
    validation_size: float = Field(default=0.0, ge=0, lt=1)
    split_seed: int = 0
    limit: int | None = Field(default=None, ge=1)
    skip_bad: bool = False
    keep_status: tuple[words.KeptStatus, ...] = ()


class Project(Words):
    """`mrpo.yaml`: what the short commands work on."""

    dataset: Dataset | None = None
    cache: str = DEFAULT_CACHE
    references: dict[str, Reference] = Field(default_factory=dict)
    scorers: dict[str, ScorerWords] = Field(default_factory=dict)

    @field_validator("dataset", mode="before")
    @classmethod
    def _dataset_by_source(cls, value: object) -> object:
        return {"source": value} if isinstance(value, str) else value

    @field_validator("references", "scorers", mode="before")
    @classmethod
    def _by_model(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        return {
            check_name(str(name)): {"model": fields} if isinstance(fields, str) else fields
            for name, fields in value.items()
        }


class Recipe(Words):
    """Everything that determines a training run.

    Unset hyper-parameters (None) take the objective's own default; `mrpo losses NAME` prints it.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    # What is optimised
    loss: str = "mrpo"
    """What is optimised: mrpo, dpo, mpo, …; `mrpo losses` lists them."""
    refs: list[str] = Field(default_factory=list)
    """Cached references, reference 1 first: it is the policy's initial model."""
    policy: str | None = None
    """Another initial model: a name of the project, a directory or a hub id."""
    combine: words.Combine | None = None
    """How several references become one; unset, as the loss has it."""
    weights: words.Weights | None = None
    """What each reference weighs; unset, as the loss has it."""
    fixed_weights: list[float] | None = None
    """One number for each reference, for `weights: fixed`."""
    weights_split: str = "validation"
    """Whose labels say how accurate a reference is, for `weights: accuracy`; never a test split."""
    weights_layout: words.WeightsLayout = "paper"
    """Which reference a confidence weight stands at: the paper's, or its code's."""
    trust_region: words.TrustRegion | None = None
    """How far the others may be from reference 1; unset, as the loss has it."""
    epsilon_max: float | None = Field(default=None, ge=0)
    """The largest radius of the trust region, relative to reference 1's log-prob."""
    score: str | None = None
    """A scorer of `mrpo score` whose scores count; unset, the data's own scores and labels."""
    held_out_score: str | None = None
    """Another scorer, whose mean is reported beside, so that a hacked reward shows."""
    behaviour: str | None = None
    """Cached reference that samples were drawn from, for `rlhf` and `kd`."""
    truncated: words.Truncated = "drop"
    """Whether responses take part that a reference, or the policy, read cut."""
    chosen: words.Chosen = "auto"
    """Which responses of a scored group count as chosen."""
    top_bottom: int = Field(default=2, ge=1)
    """So many of the best and of the worst, for `chosen: top_bottom`."""
    pairing: words.Pairing | None = None
    """Which pairs a group makes; unset, as the loss has it."""

    # The objective's own hyper-parameters (names of docs/methods.md §4)
    beta: float | None = Field(default=None, gt=0)
    """How strongly the policy is held to the reference; unset, as the loss has it."""
    label_smoothing: float | None = Field(default=None, ge=0, lt=0.5)
    """Share of preferences that are taken to be wrong."""
    deviation_scale: float | None = Field(default=None, ge=0)
    """Weight of a score's deviation from its group's mean (MPO, SWEPO)."""
    signed: bool | None = None
    """Whether the deviation keeps its sign."""
    power: Literal[0, 1, 2] | None = None
    """Power of the deviation (SWEPO)."""
    weight: Literal["none", "power"] | None = None
    """`power` weighs responses by |deviation|^power instead of adding it (SWEPO)."""
    gamma: float | None = None
    """Margin that the chosen should have (SimPO, `mpo_reference_free`)."""
    tau: float | None = Field(default=None, gt=0)
    """Temperature of the softmax over scores (InfoNCA, NCA)."""
    sft_weight: float | None = Field(default=None, ge=0)
    """Weight of the log-likelihood of the chosen, beside the preference loss."""
    delta: float | None = None
    """Margin of SLiC's hinge, nats."""
    length_penalty: float | None = None
    """What each token more costs, nats (R-DPO)."""
    kl_weight: float | None = Field(default=None, ge=0)
    """Weight of the distance from the reference (`grpo_offline`)."""
    clip: float | None = Field(default=None, gt=0)
    """How far a policy ratio may be from 1 (`grpo_offline`, `rlhf`)."""
    advantage: words.Advantage | None = None
    """What a sample's reward is compared with (`rlhf`)."""
    score_scale: float | None = Field(default=None, gt=0)
    """Scores are divided by it, into [0, 1] (MPPO)."""
    length_normalized: bool | None = None
    """Whether log-ratios are means over tokens instead of sums (IPO)."""

    # How the policy is trained
    finetuning: words.Finetuning = "lora"
    """What is trained."""
    quantization: words.Quantization | None = None
    """Of the frozen weights, below an adapter (QLoRA)."""
    dtype: words.Dtype | None = None
    """Of the weights; unset, reference 1's, and float32 for full finetuning."""
    autocast: words.Dtype | None = None
    """Of the products, where narrower; full finetuning has 16 bits on a GPU."""
    lora_r: int = Field(default=8, ge=1)
    """Rank of the adapter."""
    lora_alpha: int = Field(default=8, ge=1)
    """Scale of the adapter, over its rank."""
    lora_target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Layers that get an adapter, by name."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the adapter's inputs while it trains; the loss then depends on what is drawn."""
    use_rslora: bool = False
    """Scale the adapter by alpha over the root of its rank."""
    use_dora: bool = False
    """Learn a column's length beside its direction (DoRA)."""
    init_lora_weights: Literal["default", "gaussian"] = "default"
    """How the adapter begins; both leave the first policy as it is."""
    modules_to_save: list[str] | None = None
    """Layers that are trained whole beside the adapter, and saved with it."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Step size of AdamW, at its highest."""
    per_device_train_batch_size: int = Field(default=2, ge=1)
    """Groups of a micro-batch."""
    gradient_accumulation_steps: int = Field(default=4, ge=1)
    """Micro-batches of an optimizer step."""
    num_train_epochs: float = Field(default=1.0, gt=0)
    """Passes over the data."""
    max_steps: int = Field(default=-1, ge=-1)
    """Optimizer steps; above 0 it stands in place of the epochs."""
    lr_scheduler_type: words.Scheduler = "cosine"
    """How the learning rate falls."""
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps in which it rises first."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of AdamW."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients longer than this are scaled down; 0 for never."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Compute activations twice to save memory; `auto`: where they would not fit."""
    batch_tokens: int | None = Field(default=None, ge=16)
    """Tokens of one pass through the model, padding counted; unset, what suits the device."""
    seed: int = 0
    """What decides the order, the adapter's first values and random pairs."""
    logging_steps: int = Field(default=10, ge=1)
    """Steps between lines of the log."""
    save_steps: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    save_total_limit: int | None = Field(default=2, ge=1)
    """Checkpoints that are kept; unset, all."""
    max_length: int | None = Field(default=None, ge=8)
    """Tokens of prompt and response together; unset, reference 1's."""
    split: str = "train"
    """What is trained on; `all` for everything."""
    split_seed: int | None = Field(default=None, ge=0)
    """Draws the splits anew, where the data names none; None is the data set's own seed."""

    # What is measured while it trains: before the first step, every `eval_steps`, after the last
    eval_steps: int | None = Field(default=None, ge=1)
    """Steps between measurements of held-out groups; unset, none."""
    eval_split: str = "test"
    """Which groups those are."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after so many measurements without a better `trainer.metric_for_best_model`."""

    # What the engine takes beside all that
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Other keys of transformers' TrainingArguments: `{optim: …, report_to: …}`."""

    @model_validator(mode="after")
    def _quantized_weights_stay(self) -> Recipe:
        if self.finetuning == "full" and self.quantization is not None:
            raise ValueError("finetuning full cannot train 4-bit weights; use finetuning: lora")
        return self

    @field_validator("init_lora_weights", mode="before")
    @classmethod
    def _begins_as_reference_1(cls, value: object) -> object:
        if value in ("pissa", "olora", "eva", "loftq", "corda", False) or "pissa" in str(value):
            raise ValueError(
                "it changes the model that the adapter begins from, which would no longer be "
                "reference 1; use default or gaussian"
            )
        return "default" if value is True else value

    @model_validator(mode="after")
    def _stops_by_a_measurement(self) -> Recipe:
        if self.early_stopping_patience is not None and self.eval_steps is None:
            raise ValueError("early_stopping_patience needs eval_steps: when to measure")
        return self


ModelT = TypeVar("ModelT", bound=BaseModel)


def check_name(name: str) -> str:
    """A name of a reference or scorer: it becomes a directory and a column, so it is short and
    plain.

    Raises:
        UsageError: anything but letters, digits, `.`, `_` and `-`, or more than 64 of them.
    """
    if not NAME_PATTERN.fullmatch(name) or ".." in name:
        cut = name if len(name) <= 40 else f"{name[:40]}… ({len(name)} characters)"
        raise UsageError(
            f"reference name {cut!r} is not usable as a directory and a column",
            "use up to 64 letters, digits, '.', '_' and '-', starting with a letter or a digit",
        )
    return name


def parse(model: type[ModelT], values: object, where: str) -> ModelT:
    """Validate values read from a file.

    Raises:
        UsageError: with every problem, a line each.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = error.errors()
    lines = [f"{where}: {_in_words(problem)}" for problem in problems]
    unknown = [problem["loc"] for problem in problems if _is_unknown(problem)]
    if len(unknown) == 1:
        raise UsageError("\n".join(lines), _near_key(model, unknown[0]))
    near = {str(path[-1]): _near_key(model, path) for path in unknown}
    hints = [f"{key}: {hint}" for key, hint in near.items() if hint]
    raise UsageError("\n".join(lines), "; ".join(hints) or None)


def _is_unknown(problem: ErrorDetails) -> bool:
    return problem["type"] == "extra_forbidden"


def _in_words(problem: ErrorDetails) -> str:
    place = ".".join(map(str, problem["loc"]))
    if _is_unknown(problem):
        return f"{place}: unknown key"
    if problem["type"] == "value_error" and isinstance(problem.get("input"), dict):
        said = problem["msg"].removeprefix("Value error, ")  # of several keys, which it names
        return f"{place}: {said}" if place else said
    place = place or "the whole file"
    found = URL_SECRETS.sub(r"\1\2***", f"{problem.get('input')!r}")
    return f"{place}: {problem['msg']}, found {found:.60}"


def _near_key(model: type[BaseModel], path: tuple[int | str, ...]) -> str | None:
    """A hint to the keys that are accepted where an unknown one stands."""
    nested: dict[str, type[BaseModel]] = {
        "dataset": Dataset, "references": Reference, "scorers": Reference,
    }  # fmt: skip
    owner = nested.get(str(path[0]), model) if len(path) > 1 else model
    return did_you_mean(str(path[-1]), owner.model_fields)


def read_yaml(path: Path, absent: str = "mrpo init writes a project file") -> dict[str, Any]:
    """A YAML mapping; an empty file is an empty one.

    Args:
        path: of the file.
        absent: the hint where there is none.

    Raises:
        UsageError: no such file, or no YAML (with the line), or no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no file {path}", absent) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read as YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{path}: a mapping of keys to values is needed, found {values!r:.60}")
    return values


def yaml_value(text: str) -> Any:
    """A value as YAML reads it; what it cannot read is the text itself."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def absolute_paths(reference: Reference) -> Reference:
    """The reference with its local paths made absolute, for records that outlive this directory."""
    named = {word: getattr(reference, word) for word in ("model", "adapter", "chat_template")}
    paths = {word: Path(value).expanduser() for word, value in named.items() if value}
    local = {word: str(path.resolve()) for word, path in paths.items() if path.exists()}
    return reference.model_copy(update=local)


def loaded_here(reference: Reference) -> Reference:
    """The same model with weights of one's own: without the words of a server."""
    return reference.model_copy(update=dict.fromkeys(SERVED_WORDS))


def pinned(dataset: Dataset, revision: str | None) -> Dataset:
    """For a run's record: the data set with its path made absolute, or its commit on the hub."""
    path, source = Path(dataset.source), dataset.source
    if path.exists():
        source = str(path.resolve())
    elif revision:
        source = f"{source.partition('@')[0]}@{revision}"
    return dataset.model_copy(update={"source": source})


def drawn_as(dataset: Dataset, recipe: Recipe) -> Dataset:
    """The data set with the splits that a recipe draws: its own where the recipe says nothing."""
    if recipe.split_seed is None:
        return dataset
    return dataset.model_copy(update={"split_seed": recipe.split_seed})


def load_project(path: Path | None = None) -> Project:
    """The project file at `path`, or of the working directory; an empty project without one."""
    file = path or Path(PROJECT_FILE)
    if path is None and not file.exists():
        return Project()
    return parse(Project, read_yaml(file), str(file))


def find_recipe(path: Path, folder: str = "") -> Path:
    """The file itself, or else the one of that name among the recipes that mrpo brings along.

    Args:
        path: as the user writes it; one of ours needs no ending: `mrpo` (in a project `mrpo.yaml`
            is the project's own file).
        folder: of the recipes: `papers` holds the papers' tables.

    Returns:
        `path` where there is neither.
    """
    ours = shipped("recipes") / folder
    places = [path, ours / path.name, ours / f"{path.name}.yaml"]
    return next((place for place in places if place.is_file()), path)


def shipped_recipes(folder: str = "") -> list[str]:
    """Their names, which are accepted where a file is."""
    return sorted(file.stem for file in (shipped("recipes") / folder).glob("*.yaml"))


def load_recipe(path: Path) -> dict[str, Any]:
    """A recipe's own keys, validated (the run completes them with its options)."""
    path = find_recipe(path)
    beside = [file for file in sorted(path.parent.glob("*.y*ml")) if file.name != PROJECT_FILE]
    there = ", ".join([*map(str, beside[:6]), *shipped_recipes()])
    values = read_yaml(
        path, f"there are: {there}; mrpo recipe > recipe.yaml writes one with every key"
    )
    if path.name == PROJECT_FILE and {"dataset", "references"} & values.keys():
        raise UsageError(
            f"{path} is the project, not a recipe",
            f"those that come with mrpo have no ending: {', '.join(shipped_recipes())}",
        )
    parse(Recipe, values, str(path))
    return values


def find_reference(name: str, project: Project) -> Reference:
    """A reference by name: of the project, or one of the three aliases outside any project.

    Raises:
        UsageError: the name is neither; the message lists those that are.
    """
    if name in project.references:
        return project.references[name]
    if not project.references and name in ALIASES:
        return Reference(model=ALIASES[name])
    near = did_you_mean(name, project.references or ALIASES)
    path = f"give it a path: --ref {name}=PATH_OR_HUB_ID"
    raise UsageError(f"no reference is named {name!r}", f"{near} Or {path}" if near else path)
