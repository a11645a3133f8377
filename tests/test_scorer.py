"""A scored log-prob equals an independent computation, whatever the batch it was in."""

from __future__ import annotations

import pytest
import torch
import transformers
from independent import response_logp
from transformers import AutoModelForCausalLM

from mrpo_tools.errors import UsageError
from mrpo_tools.precomputing.meter import Meter
from mrpo_tools.progress import lines
from mrpo_tools.scorer.loaded import LoadedReference
from mrpo_tools.scorer.scorer import ROUTES, ResponseScorer, response_logps
from mrpo_tools.scorer.self_check import self_check
from mrpo_tools.scorer.trees import Row, batches
from mrpo_tools.training import activations

CPU = torch.device("cpu")
NAMES = ("llama", "mistral", "qwen")
ROUTE_NAMES = tuple(route.name for route in ROUTES)
SMALL = {
    "vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "initializer_range": 0.3,
}  # fmt: skip


def of_family(name: str, **numbers):
    """A small model of another family, with random weights."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **numbers})
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def on_routes(count: int):
    """A test on each of the fastest routes."""
    return pytest.mark.parametrize("route", ROUTES[:count], ids=ROUTE_NAMES[:count])


def random_rows(vocabulary: int, seed: int = 0) -> list[Row]:
    """Ragged trees: one to four responses of one to twenty tokens, prompts up to 40, identical
    responses among them; prompts and responses longer than the sliding windows of 8."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        return torch.randint(3, vocabulary, (length,), generator=generator).tolist()

    rows, key = [], 0
    for prompt_length, count in ((1, 2), (5, 1), (12, 4), (40, 3), (9, 4), (20, 2)):
        responses = [ids(1, 20) for _ in range(count)]
        if count == 4:
            responses[1] = responses[0]
            responses[2] = responses[2][:1]
        rows.append(Row(ids(prompt_length, prompt_length), responses, range(key, key + count)))
        key += count
    return rows


def load(path, attention: str = "sdpa"):
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation=attention
    )
    return model.eval()


def scorer_on(model, route) -> ResponseScorer:
    scorer = ResponseScorer(model)
    scorer.take(route)
    return scorer


def assert_each_as_alone(scorer: ResponseScorer, rows, logps: torch.Tensor) -> torch.Tensor:
    """Every log-prob is that of its prompt and response as one row, to 1e-5 nats a token.

    Those are returned; they are of the model's own attention function.
    """
    scorer.take(ROUTES[-1])
    pairs = [(row.prompt, response) for row in rows for response in row.responses]
    alone = torch.stack([response_logp(scorer.model, *pair) for pair in pairs])
    lengths = torch.tensor([len(response) for _, response in pairs])
    assert ((logps - alone).abs() <= 1e-5 * lengths).all()
    return alone


def assert_gradients_as_alone(scorer: ResponseScorer, rows) -> None:
    """The same, and the gradient of a weighted sum of log-probs in several batches."""
    weights = torch.linspace(-1, 1, sum(len(row.keys) for row in rows), dtype=torch.float64)
    planned = batches(sorted(rows, key=len, reverse=True), 100, packed=scorer.route.packed)
    assert len(planned) > 1
    logps = scorer([scorer.collate(batch) for batch in planned], len(weights))
    (logps * weights).sum().backward()
    trained = {name: p for name, p in scorer.model.named_parameters() if p.requires_grad}
    gradients = {name: parameter.grad.clone() for name, parameter in trained.items()}
    scorer.model.zero_grad()
    (assert_each_as_alone(scorer, rows, logps) * weights).sum().backward()
    for name, parameter in trained.items():
        scale = parameter.grad.abs().max().clamp(min=1)
        assert (gradients[name] - parameter.grad).abs().max() <= 1e-4 * scale, name


def all_logps(scorer: ResponseScorer, rows: list[Row], max_tokens: int) -> torch.Tensor:
    total = torch.zeros(sum(len(row.keys) for row in rows), dtype=torch.float64)
    for batch in scorer.batches(rows, max_tokens):
        keys = [key for row in batch for key in row.keys]
        total[keys] = torch.tensor(response_logps(scorer, batch, CPU), dtype=torch.float64)
    return total


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@on_routes(4)
@pytest.mark.parametrize("max_tokens", [1, 150, 100_000])
def test_log_probs_equal_one_row_at_a_time(tiny_models, name, attention, route, max_tokens):
    """Every route, rows alone and in batches, to 1e-5 nats per token."""
    model = load(tiny_models[name], attention)
    rows = random_rows(model.config.vocab_size)
    scorer = scorer_on(model, route)
    logps = all_logps(scorer, rows, max_tokens)
    planned = [row for batch in scorer.batches(rows, max_tokens) for row in batch]
    assert any(len(row.keys) > 1 for row in planned) == (route.share and max_tokens > 100)
    assert_each_as_alone(scorer, rows, logps)


@pytest.mark.parametrize("name", NAMES)
@on_routes(2)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_one_row_at_a_time(tiny_models, name, route, checkpointing):
    """The gradient of a weighted sum of log-probs flows through the shared prompt."""
    model = load(tiny_models[name])
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    rows = random_rows(model.config.vocab_size)
    assert_gradients_as_alone(scorer_on(model, route), rows)


@on_routes(3)
def test_bounded_products_and_logits(route):
    """Gemma 2: soft-caps in attention and head, windows in every other layer, its own scaling."""
    model = of_family(
        "Gemma2", num_hidden_layers=4, num_key_value_heads=2, head_dim=8, sliding_window=8,
        attn_logit_softcapping=2.0, final_logit_softcapping=3.0, query_pre_attn_scalar=16,
    )  # fmt: skip
    assert model.config._attn_implementation == "eager"  # the only one the family has
    rows = random_rows(200)
    scorer = scorer_on(model, route)
    assert_each_as_alone(scorer, rows, all_logps(scorer, rows, 150))
    assert self_check(ResponseScorer(model), rows[:3], CPU).noise.rms <= 1e-5


@pytest.mark.parametrize("quantization", [None, "nf4"])
@pytest.mark.parametrize("name", NAMES)
def test_useful_work_is_the_decoder_and_the_scored_head(references, name, quantization):
    """Twice the parameters of layers and norms a token, twice those of the head a scored token;
    tied and untied heads, 4-bit weights counted as the numbers they stand for."""
    from mrpo_tools.references.loading import load_model
    from mrpo_tools.references.resolved import resolve

    files = resolve(name, references[name]).files
    whole = load_model(files, references[name], "float32", CPU)
    inside = [*whole.model.layers.parameters(), *whole.model.norm.parameters()]
    decoder = sum(parameter.numel() for parameter in inside)
    head = len(whole.lm_head.weight) * whole.config.hidden_size
    reference = references[name].model_copy(update={"quantization": quantization})
    scorer = ResponseScorer(load_model(files, reference, "float32", CPU))
    assert scorer.useful_flops(1000, 10) == 2 * (1000 * decoder + 10 * head)


def test_without_a_terminal_there_is_a_line_a_minute(capsys):
    """Of 200 units, one a second: after 61 seconds 30 % and 2 minutes to go; nothing at the end."""
    seconds = iter(range(1000))
    advance = lines("computing", 200, clock=lambda: float(next(seconds)))
    for _ in range(200):
        advance(1, note="fast")
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "computing: 30%, about 2 min to go, fast",
        "computing: 60%, about 1 min to go, fast",
        "computing: 90%, about 0 min to go, fast",
    ]


def test_the_bar_says_what_is_computed(tiny_models):
    """Tokens are unique ones: a shared prompt counts once; padding is of masked rows only."""
    batch = [Row([5] * 30, [[6] * 10, [7] * 10], [0, 1]), Row([5] * 10, [[6] * 15], [2])]
    for route, padding in ((ROUTES[0], 0), (ROUTES[1], 25)):
        model = LoadedReference(scorer_on(load(tiny_models["llama"]), route), CPU)
        meter = Meter(model, peak=1e12)
        meter.add(batch)
        assert (meter.tokens, meter.padding, meter.targets) == (75, padding, 35)
        assert meter.note.startswith(f"75 tokens, {padding}% padding, ")


@pytest.mark.parametrize("quantization", [None, "nf4"])
@on_routes(2)
@pytest.mark.parametrize("name", NAMES)
def test_adapters_and_4_bit_weights(references, name, route, quantization):
    """Values and the adapter's gradients, shared prompts against one row at a time."""
    from mrpo_tools.references.loading import add_lora, load_model
    from mrpo_tools.references.locate import locate

    reference = references[name].model_copy(update={"quantization": quantization})
    model = add_lora(
        load_model(locate(reference), reference, "float32", CPU),
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        seed=0,
    )
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data.normal_(0, 0.05)
    assert_gradients_as_alone(scorer_on(model, route), random_rows(model.config.vocab_size))


def test_a_forced_attention_is_kept_or_refused(tiny_models):
    model = load(tiny_models["llama"])
    rows = random_rows(model.config.vocab_size)
    for attention, routes in (("sdpa", ROUTES[1:]), ("tree", ROUTES[:1]), ("auto", ROUTES)):
        scorer = ResponseScorer(load(tiny_models["llama"]), attention)
        self_check(scorer, rows, CPU)
        assert scorer.route == routes[0]
    scorer = ResponseScorer(model, "tree")
    whole = model.model.forward
    model.model.forward = lambda forest=None, **rest: whole(**rest)  # drops what it does not know
    with pytest.raises(UsageError, match="attention tree does not give"):
        self_check(scorer, rows, CPU)


def test_a_mask_without_the_window_would_be_wrong(tiny_models):
    """The door the window in the mask holds shut: Mistral forgets its window on a 4-D mask."""
    model = load(tiny_models["mistral"])
    row = random_rows(model.config.vocab_size)[3]
    right = response_logps(scorer_on(model, ROUTES[1]), [row], CPU)
    model.config.sliding_window = None
    wrong = response_logps(scorer_on(model, ROUTES[1]), [row], CPU)
    worst = max(abs(a - b) for a, b in zip(right, wrong, strict=True))
    assert worst > 0.01


def nothing(scorer: ResponseScorer) -> None:
    """The model stays as it is."""


def drop_masks(scorer: ResponseScorer) -> None:
    """A decoder that ignores 4-D masks makes shared prompts wrong."""
    whole = scorer.model.model.forward

    def without_branches(attention_mask=None, forest=None, **rest):
        flat = attention_mask is not None and attention_mask.dim() == 2
        return whole(attention_mask=attention_mask if flat else None, **rest)

    scorer.model.model.forward = without_branches


def scale_logits(scorer: ResponseScorer) -> None:
    """A family that scales its logits in a way the tiled head does not know."""
    whole = scorer.model.forward

    def scaled(**arguments):
        output = whole(**arguments)
        output.logits = output.logits * 0.5
        return output

    scorer.model.forward = scaled


def spoil_packed(scorer: ResponseScorer) -> None:
    """NaN that is not the first of a row's numbers."""
    honest = scorer.token_logps

    def spoiled(batch):
        logps = honest(batch)
        return logps.index_fill(0, torch.tensor([len(logps) - 1]), float("nan")) if (
            scorer.route.packed) else logps  # fmt: skip

    scorer.token_logps = spoiled


@pytest.mark.parametrize(
    ("change", "route"),
    [(nothing, "tree"), (spoil_packed, "mask"), (drop_masks, "rows"),
     (scale_logits, "own logits")],
)  # fmt: skip
def test_the_self_check_takes_the_fastest_exact_route(tiny_models, change, route):
    scorer = ResponseScorer(load(tiny_models["llama"]))
    change(scorer)
    checked = self_check(scorer, random_rows(scorer.config.vocab_size), CPU)
    assert checked.noise.rms <= 1e-5
    assert checked.route == scorer.route == ROUTES[ROUTE_NAMES.index(route)]
    assert list(checked.refused) == list(ROUTE_NAMES[: ROUTE_NAMES.index(route)])


def test_a_window_that_only_the_mask_has_is_not_forgotten():
    """Qwen2-MoE never tells its attention function the window: the masked route is taken, and a
    prompt longer than the window is right."""
    rows = random_rows(200)
    scorer = ResponseScorer(of_family(
        "Qwen2Moe", num_key_value_heads=2, moe_intermediate_size=32, num_experts=4,
        shared_expert_intermediate_size=32, num_experts_per_tok=2, use_sliding_window=True,
        sliding_window=8, max_window_layers=0,
    ))  # fmt: skip
    self_check(scorer, [rows[0]], CPU)
    assert scorer.route != ROUTES[0]
    assert_each_as_alone(scorer, rows, all_logps(scorer, rows, 150))


LENGTH_DEPENDENT = {
    "longrope": ("Phi3", {"pad_token_id": 0, "original_max_position_embeddings": 16,
                          "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4,
                                           "long_factor": [4.0] * 4}}),
    "dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0,
                                              "rope_theta": 10000.0}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", LENGTH_DEPENDENT)
def test_rotary_embeddings_that_depend_on_the_longest_row(kind):
    """A row's numbers are those that a fresh model gives it alone, whatever else is computed."""
    family, words = LENGTH_DEPENDENT[kind]
    words = {"max_position_embeddings": 16 if kind == "dynamic" else 64, **words}
    rows = random_rows(200)
    scorer = ResponseScorer(of_family(family, **words))
    assert self_check(scorer, rows, CPU).route.name == "tree"
    planned = scorer.batches(rows, 10_000)
    kinds = [{len(row.prompt) + len(ids) > 16 for row in batch for ids in row.responses}
             for batch in planned]  # fmt: skip
    assert all(len(each) == 1 for each in kinds), "short and long rows stand apart"
    assert any(len(batch) > 1 and True in each for batch, each in zip(planned, kinds, strict=True)
               ) == (kind == "longrope")  # fmt: skip
    logps = all_logps(scorer, rows, 10_000)
    pairs = [(row.prompt, ids) for row in rows for ids in row.responses]
    alone = torch.stack([response_logp(of_family(family, **words), *pair) for pair in pairs])
    lengths = torch.tensor([len(ids) for _, ids in pairs])
    assert ((logps - alone).abs() <= 1e-5 * lengths).all()


def test_a_scorer_has_no_dropout(tiny_models):
    """In training mode too: dropout of layers and of attention, whatever the configuration says."""
    model = AutoModelForCausalLM.from_pretrained(
        tiny_models["llama"], dtype=torch.float32, attention_dropout=0.5
    )
    model.model.embed_tokens = torch.nn.Sequential(model.model.embed_tokens, torch.nn.Dropout(0.5))
    rows = random_rows(model.config.vocab_size)
    scorer = ResponseScorer(model.eval())
    for route in ROUTES:
        scorer.take(route)
        scorer.eval()
        expected = all_logps(scorer, rows, 150)
        scorer.train()
        assert torch.equal(all_logps(scorer, rows, 150), expected)


def test_activations_are_measured(tiny_models):
    """Kept bytes grow with the layers and shrink with checkpointing."""
    model = load(tiny_models["llama"]).train()
    scorer = scorer_on(model, ROUTES[0])
    row = Row([5] * 100, [[6] * 50, [7] * 50], [0, 1])
    whole = activations.bytes_per_token(scorer, row)
    width, depth = model.config.hidden_size, model.config.num_hidden_layers
    assert whole > 10 * width * depth * 4
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert activations.bytes_per_token(scorer, row) < 0.5 * whole


@pytest.mark.parametrize(("free", "fits"), [(1e3, False), (1e12, True)])
def test_activations_decide_by_the_memory_that_is_free(tiny_models, free, fits):
    scorer = scorer_on(load(tiny_models["llama"]).train(), ROUTES[0])
    rows = random_rows(scorer.config.vocab_size)
    assert activations.activations_fit(scorer, rows, 2, free, {}) is fits
