"""Attention over a packed forest is that of every tree alone, by every rule, on every route.

The expected values are whole products in float64 with a mask that is read off the rows.
"""

from __future__ import annotations

import functools
import inspect

import pytest
import torch
import transformers
from independent import response_logp
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface

from mrpo_tools.scorer import pieces, variable_length
from mrpo_tools.scorer.attention import (
    TREE,
    TREE_PIECES,
    missing_variable_length,
    tree_attention,
    uses_variable_length,
)
from mrpo_tools.scorer.scorer import ResponseScorer, response_logps
from mrpo_tools.scorer.self_check import self_check
from mrpo_tools.scorer.trees import Row, collate
from mrpo_tools.scorer.variable_length import VariableLength, segments

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HEADS, SIZE = 4, 8


def tree(prompt: int, *responses: int) -> Row:
    """A row of these lengths; only lengths matter to attention."""
    return Row([5] * prompt, [[6] * length for length in responses], range(len(responses)))


SHORT = (tree(12, 4, 1, 9), tree(7, 20), tree(1, 2, 3), tree(30, 5, 25))
LONG = (tree(30, 540, 5), tree(10, 530))
"""Pieces longer than a block, with and without a prefix."""


def forest_of(rows):
    return collate(rows, packed=True)["forest"]


def seen_by(rows, window: int | None = None) -> torch.Tensor:
    """[T, T] bool: which tokens of the line a token sees, by what a tree is."""
    trees, branches, positions = [], [], []
    for number, row in enumerate(rows):
        for branch, ids in enumerate([row.prompt, *row.responses]):
            first = len(row.prompt) if branch else 0
            trees += [number] * len(ids)
            branches += [branch] * len(ids)
            positions += range(first, first + len(ids))
    owner, branch, position = (torch.tensor(column) for column in (trees, branches, positions))
    distance = position[:, None] - position
    return (
        (owner[:, None] == owner)
        & ((branch == 0) | (branch[:, None] == branch))
        & (distance >= 0)
        & (distance < (window or len(trees)))
    )


def whole(query, key, value, seen, *, scaling=None, softcap=None, sinks=None):
    """[1, T, H, E]: all products at once."""
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    products = query @ key.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    if softcap is not None:
        products = softcap * (products / softcap).tanh()
    products = products.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        column = sinks.view(1, -1, 1, 1).expand(1, -1, len(seen), 1)
        products = torch.cat((products, column), dim=3)
    weights = products.exp() / products.exp().sum(3, keepdim=True)
    return (weights[..., : len(seen)] @ value).transpose(1, 2)


def states_of(rows, groups: int = 2, dtype=torch.float64, heads: int = HEADS):
    """Query, key and value as transformers lays them out: heads beside each other in memory."""
    torch.manual_seed(0)
    length = sum(map(len, rows))
    return [
        torch.randn(1, length, number, SIZE, dtype=dtype).transpose(1, 2).requires_grad_()
        for number in (heads, groups, groups)
    ]


def with_gradients(output: torch.Tensor, inputs) -> list[torch.Tensor]:
    """An output, and the gradients of a weighted sum of it."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return [output, *torch.autograd.grad((output * weights).sum(), inputs)]


def assert_equal(actual, expected, tolerance: float = 1e-10) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def attend(states, rows, **told) -> torch.Tensor:
    """The output of `tree_attention` for a layer that knows its window."""
    told = {"sliding_window": None, "scaling": None, **told}
    return tree_attention(torch.nn.Module(), *states, None, forest=forest_of(rows), **told)[0]


# --- the kernel ------------------------------------------------------------------------------


def reference(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window):
    """Variable-length attention by its definition, segment after segment, query after query."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert (max_q, max_k) == (cu_seq_q.diff().max(), cu_seq_k.diff().max())
    groups = query.shape[1] // key.shape[1]
    outputs = []
    for q0, q1, k0, k1 in zip(cu_seq_q, cu_seq_q[1:], cu_seq_k, cu_seq_k[1:], strict=False):
        for q in range(q0, q1):
            last = k1 - (q1 - q)
            first = k0 if window[0] < 0 else max(k0, last - window[0])
            near = slice(first, last + 1 if window[1] == 0 else k1)
            keys, values = (part[near].repeat_interleave(groups, 1) for part in (key, value))
            products = torch.einsum("he,khe->hk", query[q], keys) * scale
            weights = products.to(torch.promote_types(query.dtype, torch.float32)).softmax(-1)
            outputs.append(torch.einsum("hk,khe->he", weights.to(value.dtype), values))
    return torch.stack(outputs)


def torch_2_10(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None
):
    window = (-1, 0) if is_causal else (-1, -1)
    scale = query.shape[-1] ** -0.5
    return reference(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window)


def torch_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *,
    return_aux=None, scale=None, window_size=(-1, -1),
):  # fmt: skip
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return reference(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size)


def torch_2_12(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *,
    return_aux=None, scale=None, window_size=(-1, -1), enable_gqa=False,
    seqused_k=None, block_table=None, num_splits=None,
):  # fmt: skip
    if not enable_gqa and query.shape[1] != key.shape[1]:
        raise ValueError("Expect query and key/value to have the same number of heads")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return reference(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size)


RELEASES = (torch_2_10, torch_2_11, torch_2_12)


class Watched(VariableLength):
    """The kernel on a CPU; it keeps the numbers of every call."""

    def __init__(self, kernel, dtypes=(torch.float64,)) -> None:
        super().__init__(kernel, "cpu", dtypes)
        self.seen: list[torch.dtype] = []

    def __call__(self, query, key, value, forest, rule):
        assert query.dtype == key.dtype == value.dtype
        self.seen.append(query.dtype)
        return super().__call__(query, key, value, forest, rule)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 8, 3])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_one_call_is_every_tree_alone(release, groups, window, scaling):
    """Values and gradients with every signature; a window that one lacks goes piece by piece."""
    states, kernel = states_of(SHORT, groups), Watched(release)
    output = attend(states, SHORT, scaling=scaling, sliding_window=window, kernel=kernel)
    expected = whole(*states, seen_by(SHORT, window), scaling=scaling)
    assert_equal(with_gradients(output, states), with_gradients(expected, states))
    assert len(kernel.seen) == (window is None or release is not torch_2_10)


def test_the_installed_kernel_has_a_signature_that_is_tried_here():
    told = {"query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"}
    used = {"is_causal", "scale", "window_size", "enable_gqa"}
    tried = [set(inspect.signature(release).parameters) for release in RELEASES]
    installed = variable_length.INSTALLED.keywords
    assert told <= installed
    assert installed & used in [names & used for names in tried]


def wrong_window(*arguments, scale=None, window_size=(-1, -1), enable_gqa=False):
    left, right = window_size
    return torch_2_11(*arguments, scale=scale, window_size=(left + 1, right))


def not_causal(*arguments, scale=None, window_size=(-1, -1), enable_gqa=False):
    return torch_2_11(*arguments, scale=scale, window_size=(window_size[0], -1))


def from_the_start(query, key, value, queries, keys, *longest, scale=None, window_size=(-1, -1)):
    """Causal order counted from a segment's first key."""
    ends = keys[:-1] + queries.diff()
    parts = [torch.arange(start, end) for start, end in zip(keys, ends, strict=False)]
    places, longest = torch.cat(parts), (longest[0], longest[0])
    return torch_2_11(
        query, key[places], value[places], queries, queries, *longest,
        scale=scale, window_size=window_size,
    )  # fmt: skip


def keys_of_another_tree(query, key, value, *rest, scale=None, window_size=(-1, -1)):
    return torch_2_11(
        query, key.roll(1, 0), value.roll(1, 0), *rest, scale=scale, window_size=window_size
    )


@pytest.mark.parametrize("fault", [wrong_window, not_causal, from_the_start, keys_of_another_tree])
def test_a_wrong_kernel_is_seen(fault):
    """The comparison above would see each of these faults."""
    states = states_of(SHORT)
    output = attend(states, SHORT, sliding_window=8, kernel=Watched(fault))
    assert (output - whole(*states, seen_by(SHORT, 8))).abs().max() > 0.05


@pytest.mark.parametrize("window", [None, 8, 3])
@pytest.mark.parametrize("rows", [SHORT, SHORT[1:2]])
def test_segments_describe_the_same_attention(rows, window):
    """Read as the kernel's definition says, they are the pairs of the trees; a line without
    prefixes is not copied."""
    places, query_ends, key_ends, longest = segments(forest_of(rows), window, CPU)
    assert (places is None) == (len(rows) == 1)
    length = int(query_ends[-1])
    places = torch.arange(length) if places is None else places
    seen = torch.zeros(length, length, dtype=torch.bool)
    for piece in range(len(query_ends) - 1):
        q0, q1 = query_ends[piece : piece + 2].tolist()
        k0, k1 = key_ends[piece : piece + 2].tolist()
        for q in range(q0, q1):
            last = k1 - k0 - (q1 - q)
            first = 0 if window is None else max(0, last - window + 1)
            seen[q, places[k0 + first : k0 + last + 1]] = True
    assert longest == (query_ends.diff().max(), key_ends.diff().max())
    assert torch.equal(seen, seen_by(rows, window))


@pytest.mark.parametrize(
    ("told", "sizes", "reason"),
    [
        ({"softcap": 2.0}, (8, 8), "soft-capped"),
        ({"s_aux": torch.zeros(HEADS, dtype=torch.float64)}, (8, 8), "sinks"),
        ({}, (12, 12), "heads of this size"),
        ({}, (16, 8), "heads of this size"),
        ({}, (264, 264), "heads of this size"),
    ],
)
def test_what_the_kernel_has_not_goes_piece_by_piece(told, sizes, reason):
    kernel = Watched(torch_2_12)
    query, key, value = (
        torch.randn(1, HEADS, 62, size, dtype=torch.float64) for size in (sizes[0], *sizes)
    )
    rows = [tree(12, 20, 30)]
    output = attend((query, key, value), rows, kernel=kernel, **told)
    sinks = told.pop("s_aux", None)
    assert_equal([output], [whole(query, key, value, seen_by(rows), sinks=sinks, **told)])
    rule = pieces.Rule(1.0, softcap=told.get("softcap"), sinks=sinks)
    assert kernel.seen == []
    assert reason in kernel.refusal(rule, *sizes)


# --- autocast --------------------------------------------------------------------------------


def test_autocast_reaches_the_kernel():
    """Rotary embeddings leave queries and keys in float32, values are in bfloat16."""
    query, key, value = states_of(SHORT, dtype=torch.float32)
    states = query, key, value.to(torch.bfloat16)
    kernel = Watched(torch_2_12, (torch.bfloat16,))
    with torch.autocast("cpu", torch.bfloat16):
        output = attend(states, SHORT, kernel=kernel)
        apart = attend(states, SHORT, kernel=None)
    assert kernel.seen == [torch.bfloat16]
    assert output.dtype == apart.dtype == torch.bfloat16
    exact = whole(*(numbers.double() for numbers in states), seen_by(SHORT))
    for numbers in (output, apart):
        assert (numbers - exact).abs().max() < 0.05


def model_of(family: str, **numbers):
    """A small model with random weights, sinks too."""
    torch.manual_seed(0)
    small = {
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4,
        "num_attention_heads": HEADS, "num_key_value_heads": 2, "head_dim": SIZE,
        "initializer_range": 0.3,
    }  # fmt: skip
    config = getattr(transformers, f"{family}Config")(**{**small, **numbers})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            parameter.data.normal_(0, 2)
    return model


def test_every_layer_of_float32_weights_under_autocast_is_one_call():
    kernel = Watched(torch_2_12, (torch.bfloat16,))
    AttentionInterface.register("watched", functools.partial(tree_attention, kernel=kernel))
    model = model_of("Llama")
    model.set_attn_implementation("watched")
    batch = collate([tree(6, 3, 4)], packed=True)
    told = {name: batch[name] for name in ("input_ids", "position_ids", "forest")}
    with torch.autocast("cpu", torch.bfloat16):
        model.model(**told, use_cache=False)
    assert kernel.seen == [torch.bfloat16] * 4
    model.model(**told, use_cache=False)
    assert len(kernel.seen) == 4  # float32 is not the kernel's


# --- pieces ----------------------------------------------------------------------------------

RULES = {
    "all before": {},
    "near window": {"sliding_window": 8},
    "window longer than a block": {"sliding_window": 530},
    "soft-cap": {"softcap": 2.0},
    "soft-cap and window": {"softcap": 2.0, "sliding_window": 100},
    "sinks": {"s_aux": True},
    "sinks and window": {"s_aux": True, "sliding_window": 530},
    "everything": {"s_aux": True, "softcap": 2.0, "sliding_window": 8, "scaling": 0.3},
}


@pytest.mark.parametrize("rows", [SHORT, LONG], ids=["short", "longer than a block"])
@pytest.mark.parametrize("name", RULES)
def test_blocks_are_the_whole_product(rows, name):
    """Values, and the gradients of queries, keys, values and sinks."""
    told, states, sinks = dict(RULES[name]), states_of(rows), None
    inputs = list(states)
    if told.pop("s_aux", None):
        sinks = torch.linspace(-2, 3, HEADS, dtype=torch.float64).requires_grad_()
        inputs.append(sinks)
    output = attend(states, rows, s_aux=sinks, **told)
    seen = seen_by(rows, told.pop("sliding_window", None))
    expected = whole(*states, seen, sinks=sinks, **told)
    assert_equal(with_gradients(output, inputs), with_gradients(expected, inputs))


@pytest.mark.parametrize(
    "fault",
    [{"sliding_window": 9}, {"softcap": 2.1}, {"s_aux": torch.ones(HEADS)}, {"scaling": 0.36}],
)
def test_a_wrong_rule_is_seen(fault):
    states = states_of(SHORT)
    told = {"sliding_window": 8, "softcap": 2.0, **fault}
    right = whole(*states, seen_by(SHORT, 8), softcap=2.0)
    assert (attend(states, SHORT, **told) - right).abs().max() > 1e-3


class Largest(TorchDispatchMode):
    """The most numbers that any tensor has that is made inside."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        made = output if isinstance(output, (tuple, list)) else [output]
        sizes = [tensor.numel() for tensor in made if isinstance(tensor, torch.Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return output


def kept_bytes(function) -> int:
    """What autograd keeps of a call for its backward pass; a storage counts once."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function()
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("told", [{"softcap": 2.0}, {"s_aux": torch.zeros(16)}])
def test_products_of_a_long_row_never_exist_at_once(told):
    """In training too: neither made in forward or backward, nor kept between them."""
    rows = [tree(500, 500)]
    states = states_of(rows, dtype=torch.float32, heads=16)
    everything = 16 * 1000**2
    with Largest() as largest:
        attend(states, rows, **told).sum().backward()
    assert largest.numbers <= pieces.PRODUCTS[True] < everything / 3
    kept = kept_bytes(lambda: attend(states, rows, **told))
    inputs = 4 * sum(tensor.numel() for tensor in states)
    masks = 4 * pieces.BLOCK * (1024 + 1)
    assert kept <= 2 * inputs + masks < 4 * everything / 8
    cap = told.get("softcap")
    assert kept_bytes(lambda: whole(*states, seen_by(rows), softcap=cap)) >= 4 * everything


def test_masks_of_a_long_row_with_a_window_are_small():
    """One mask of a block serves all blocks of all pieces, with and without a prefix."""
    rows = [tree(3000, 700, 1300), tree(20, 2500)]
    forest = forest_of(rows)
    states = states_of(rows, dtype=torch.float32)
    for window in (1000, 1000, None):
        tree_attention(torch.nn.Module(), *states, None, sliding_window=window, forest=forest)
    masks = [mask.untyped_storage().nbytes() for mask in forest.memory.values()]
    assert len(masks) == 2
    assert max(masks) <= 4 * pieces.BLOCK * (2 * (3000 + 1300) + 1)


def test_a_block_of_sixteen_bits_has_softmax_in_float32():
    """Bounded products in bfloat16 are as far from exact as their inputs are, not further."""
    states = states_of(SHORT, dtype=torch.bfloat16)
    output = attend(states, SHORT, softcap=30.0)
    exact = whole(*(numbers.double() for numbers in states), seen_by(SHORT), softcap=30.0)
    assert output.dtype == torch.bfloat16
    assert ((output - exact) ** 2).mean().sqrt() < 2**-8


# --- models ----------------------------------------------------------------------------------

MODELS = {
    "Gemma2": {
        "sliding_window": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 16,
    },
    "GptOss": {"sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Mistral": {"sliding_window": 8},
}  # fmt: skip


def test_reasons_are_told_where_one_call_is_expected():
    """On CUDA in 16 bits. What a model asks of the kernel comes before what this machine lacks."""
    gemma, oss, mistral = (model_of(family, **MODELS[family]) for family in MODELS)
    old, new = VariableLength(torch_2_10), VariableLength(torch_2_11)
    missing = functools.partial(missing_variable_length, CUDA, torch.bfloat16)
    assert missing_variable_length(CPU, torch.bfloat16) is None
    assert missing_variable_length(CUDA, torch.float32) is None
    assert not uses_variable_length(CPU, torch.bfloat16)
    assert not uses_variable_length(CUDA, torch.float32)
    assert f"torch {torch.__version__} has no" in missing(kernel=None)
    assert "soft-capped" in missing(gemma, new)
    assert "sinks" in missing(oss, new)
    assert "windows since torch 2.11" in missing(mistral, old)
    assert "heads of this size" in missing(model_of("Llama", head_dim=12), new)
    assert missing(mistral, new) == missing()  # of the machine alone, if any
    assert uses_variable_length(CUDA, torch.bfloat16) == (missing() is None)


def random_rows() -> list[Row]:
    """Prompts and responses longer than the window."""
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(3, 50, (length,), generator=generator).tolist()

    keys = iter(range(10))
    return [
        Row(ids(prompt), [ids(length) for length in responses], [next(keys) for _ in responses])
        for prompt, responses in ((30, (12, 1, 20)), (3, (25,)), (9, (14, 2)))
    ]


@pytest.mark.parametrize("attention", [TREE, TREE_PIECES])
@pytest.mark.parametrize("family", MODELS)
def test_families_take_the_tree_route(family, attention):
    """Log-probs and gradients of a packed line are those of one response at a time, by the
    family's own attention."""
    model, rows = model_of(family, **MODELS[family]), random_rows()
    pairs = [(row.prompt, response) for row in rows for response in row.responses]
    expected = torch.stack([response_logp(model, *pair) for pair in pairs])
    weights = torch.linspace(-1, 1, len(pairs), dtype=torch.float64)
    trained = dict(model.named_parameters())
    alone = torch.autograd.grad((expected * weights).sum(), trained.values(), allow_unused=True)
    scorer = ResponseScorer(model)
    self_check(scorer, rows, CPU)
    assert scorer.route.packed
    model.set_attn_implementation(attention)
    logps = scorer([scorer.collate(rows)], len(pairs))
    assert ((logps - expected).abs() < 1e-5 * torch.tensor([len(ids) for _, ids in pairs])).all()
    packed = torch.autograd.grad((logps * weights).sum(), trained.values(), allow_unused=True)
    for name, ours, theirs in zip(trained, packed, alone, strict=True):
        assert (ours is None) == (theirs is None), name
        if theirs is not None:
            assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max().clamp(min=1), name


def test_sinks_that_are_forgotten_are_seen():
    model, rows = model_of("GptOss", **MODELS["GptOss"]), random_rows()
    forgetful = functools.partial(tree_attention)

    def without(*states, s_aux=None, **told):
        return forgetful(*states, **told)

    scorer = ResponseScorer(model)
    self_check(scorer, rows, CPU)
    right = response_logps(scorer, rows, CPU)
    AttentionInterface.register("without sinks", without)
    model.set_attn_implementation("without sinks")
    wrong = response_logps(scorer, rows, CPU)
    assert max(abs(a - b) for a, b in zip(right, wrong, strict=True)) > 0.1
