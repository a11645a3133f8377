"""Model directories made to do harm: each ends in one line, and nothing of theirs is run or
followed."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from reference_changes import edit_json, read_json
from safetensors.torch import load_file, save_file

from mrpo_tools.cli import run
from mrpo_tools.config import Reference
from mrpo_tools.references.loading import add_lora, load_model
from mrpo_tools.references.locate import locate

ROW = {"prompt": "What is 2 + 2?", "chosen": "It is 4.", "rejected": "It is 5."}
CONFIG, TOKENIZER, SETTINGS = "config.json", "tokenizer.json", "tokenizer_config.json"
INDEX, GENERATION = "model.safetensors.index.json", "generation_config.json"
WEIGHTS, TEMPLATE, ADAPTER = "model.safetensors", "chat_template.jinja", "adapter_config.json"
LINE = "precompute --ref a=./model --dataset rows.jsonl --cache cache"
ADAPTED = f"{LINE} --adapter ./adapter"
WRONG: tuple[Any, ...] = ("text", -1, [1, "a"], {"a": 1}, None, 1e30, True, 10_000_000, "", 0)
"""Values of every type, of which at least nine are wrong wherever one is right."""
LIMIT_SECONDS = 60
pytestmark = pytest.mark.usefixtures("directory")


@pytest.fixture(scope="module")
def honest(tiny_models, tmp_path_factory) -> Path:
    """A directory with a model in one file, the same in two with an index, an adapter of it, and a
    data set of one row."""
    root = tmp_path_factory.mktemp("honest")
    (root / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    shutil.copytree(tiny_models["llama"], root / "model")
    reference = Reference(model=str(root / "model"), dtype="float32")
    whole = load_model(locate(reference), reference, "float32", torch.device("cpu"))
    whole.save_pretrained(root / "sharded", max_shard_size="100KB")
    for name in ("tokenizer.json", SETTINGS, TEMPLATE):
        shutil.copy(root / "model" / name, root / "sharded")
    add_lora(whole, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], seed=0).save_pretrained(
        root / "adapter"
    )
    return root


@pytest.fixture
def directory(honest, here) -> Path:
    """A copy of it, which is the working directory."""
    shutil.copytree(honest, here, dirs_exist_ok=True)
    return here


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    err: str


def attempt(capfd: Any, line: str = LINE) -> Ended:
    """Run a command as its user would: what it says is one line, and soon."""

    def too_long(*_: object) -> None:
        raise BaseException(f"{line} takes more than {LIMIT_SECONDS} s")

    capfd.readouterr()
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LIMIT_SECONDS)
    try:
        code = run(line.split())
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    err = capfd.readouterr().err
    assert "Traceback" not in err, err
    assert "error: unexpected " not in err, err
    errors = [text for text in err.splitlines() if text.startswith("error:")]
    assert len(errors) == (code != 0), err
    assert code in (0, 2, 4), err
    return Ended(code, err)


def test_the_directories_are_good(capfd):
    """What is spoilt below is whole before: a model, a sharded one, and one with its adapter."""
    for line in (LINE, LINE.replace("./model", "./sharded"), ADAPTED):
        assert attempt(capfd, line).code == 0, line


# Attacks: what is done to the directory, and a word of the line that names it.


def written(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda root: (root / name).write_bytes(data)


def edited(name: str, **values: Any) -> Callable[[Path], object]:
    return lambda root: edit_json(root / name, **values)


def instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Something else in a file's place."""

    def spoil(root: Path) -> None:
        (root / name).unlink(missing_ok=True)
        make(root / name)

    return spoil


def linked(name: str, target: str) -> Callable[[Path], object]:
    return instead(name, lambda path: path.symlink_to(target))


def moved_out(name: str) -> Callable[[Path], object]:
    """The file itself outside of its directory, and a link to it."""

    def spoil(root: Path) -> None:
        (root / name).rename(root / "outside")
        (root / name).symlink_to(root / "outside")

    return spoil


def indexed(name: str) -> Callable[[Path], object]:
    """An index that names another file for one tensor."""

    def spoil(root: Path) -> None:
        shutil.rmtree(root / "model")
        (root / "sharded").rename(root / "model")
        weight_map = read_json(root / "model" / INDEX)["weight_map"]
        first = min(weight_map)
        edit_json(root / "model" / INDEX, weight_map={**weight_map, first: name})

    return spoil


def without_tensor(root: Path) -> None:
    tensors = load_file(root / "model" / WEIGHTS)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, root / "model" / WEIGHTS, metadata={"format": "pt"})


def many_tokens(root: Path) -> None:
    """A tokenizer that gives ids beyond the embedding."""
    path = root / "model" / TOKENIZER
    state = read_json(path)
    vocabulary = state["model"]["vocab"]
    added = {token["content"] for token in state["added_tokens"]}
    far = {text: index + 10**6 * (text not in added) for text, index in vocabulary.items()}
    edit_json(path, model={**state["model"], "vocab": far})


def model(name: str) -> str:
    return f"model/{name}"


FILES = (CONFIG, TOKENIZER, SETTINGS, TEMPLATE, WEIGHTS, GENERATION)
PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    **{f"{name} is a directory": (instead(model(name), Path.mkdir), name) for name in FILES},
    **{f"{name} is a FIFO": (instead(model(name), os.mkfifo), name) for name in FILES},
    **{f"{name} is a device": (linked(model(name), "/dev/zero"), name) for name in FILES},
    **{f"{name} lies outside": (moved_out(model(name)), name) for name in FILES},
    **{f"{name} links to itself": (linked(model(name), name), name) for name in FILES},
    **{f"{name} links to nothing": (linked(model(name), "nowhere"), name) for name in FILES},
    **{f"{name} is no text": (written(model(name), b"\xff\xfe\x00"), name.split(".")[0])
       for name in FILES},
    **{f"{name} is too deep": (written(model(name), '{"a":' * 10**5), name)
       for name in (CONFIG, SETTINGS, GENERATION)},
    "the index leads up": (indexed("../outside.safetensors"), "../outside.safetensors"),
    "the index leads to a device": (indexed("/dev/zero"), "/dev/zero"),
    "the index leads to a folder": (indexed("."), "'.'"),
    "the index is empty": (edited("model/" + INDEX), "model"),
}  # fmt: skip
ASKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a million layers": (edited("model/config.json", num_hidden_layers=10**6), "1,000,000"),
    "a giant width": (edited("model/config.json", hidden_size=10**7), "promises"),
    "a giant vocabulary": (edited("model/config.json", vocab_size=10**9), "promises"),
    "a million heads": (edited("model/config.json", num_attention_heads=10**6), "heads"),
    "a layer more than there is": (edited("model/config.json", num_hidden_layers=3), "lack"),
    "a tensor less than is promised": (without_tensor, "up_proj"),
    "bitsandbytes": (edited("model/config.json", quantization_config={"load_in_4bit": True}),
                     "bitsandbytes"),
    **{f"quantised by {method}": (
        edited("model/config.json", quantization_config={"quant_method": method}), method)
       for method in ("bitsandbytes", "gptq", "awq", "mxfp4", "fp8", "aqlm", "evil")},
    "quantised by a text": (edited("model/config.json", quantization_config="evil"), "evil"),
    "an adapter beside the model": (lambda root: shutil.copy(
        root / "adapter" / ADAPTER, root / "model"), "an adapter"),
    "ids beyond the embedding": (many_tokens, "embeddings"),
    "a text for a text part": (edited("model/config.json", text_config="x"), "text_config"),
}  # fmt: skip
LOOPS = "{%- for a in range(99999) -%}{%- for b in range(99999) -%}{%- endfor -%}{%- endfor -%}"
GROWS = (
    "{%- set ns = namespace(x='aaaaaaaaaaaaaaaa') -%}{%- for a in range(99) -%}"
    "{%- set ns.x = ns.x ~ ns.x -%}{%- endfor -%}"
)
LISTS = (
    "{%- set ns = namespace(x=[1]) -%}{%- for a in range(99) -%}"
    "{%- set ns.x = ns.x + ns.x -%}{%- endfor -%}"
)
FORKS = (
    "{%- macro m(n) -%}{%- if n -%}{{ m(n-1) }}{{ m(n-1) }}{%- endif -%}{%- endmacro -%}{{ m(99) }}"
)
CHAT = "{%- for m in messages -%}{{- m.role ~ ': ' ~ m.content ~ '\n' -}}{%- endfor -%}"
TEMPLATES: dict[str, tuple[str | bytes, str]] = {
    "loops for some data alone": (
        CHAT + "{%- if messages[-1].content == 'It is 5.' -%}" + LOOPS + "{%- endif -%}",
        "more than 5 s"),
    "forks": (FORKS + CHAT, "more than 5 s"),
    "grows a text": (GROWS + CHAT, "512 MB"),
    "grows a list": (LISTS + CHAT, "512 MB"),
    "centres": ("{{ 'a' | center(10**11) }}" + CHAT, "512 MB"),
    "centres what is given": ("{{ messages[0].role | center(10**11) }}" + CHAT, "512 MB"),
    "repeats": ("{{ 'a' * 10**11 }}" + CHAT, "512 MB"),
    "a power": ("{{ 9 ** (9 ** 9) }}" + CHAT, "more than 5 s"),
    "a long answer": (CHAT + "{{ 'a' * 10**7 }}", "10,000"),
    "a syntax error": ("{% if %}", "cannot be used"),
    "no such filter": ("{{ 1 | evil }}", "cannot be used"),
    "nests without end": ("{{" + "(" * 10**5 + "}}", "cannot be used"),
    "reaches for the interpreter": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "adds to a number": ("{{ 1 + 'a' }}" + CHAT, "unsupported operand"),
    "is too long": ("{# " + "x" * 2_000_000 + " #}", "1,000,000"),
}  # fmt: skip
PANICS: dict[str, dict[str, Any]] = {
    "post_processor": {
        "type": "TemplateProcessing", "pair": [], "special_tokens": {},
        "single": [{"SpecialToken": {"id": "evil", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
    },
    "pre_tokenizer": {"type": "FixedLength", "length": 0},
    "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
}  # fmt: skip
"""Parts of tokenizer.json at which the library panics."""
SLOW = ("forks", "a power")
"""Templates that are stopped like the one that loops, after as long."""


@pytest.mark.parametrize("case", PLACES)
def test_files_are_regular_and_of_the_directory(case, directory, capfd):
    """No pipe, device or directory is waited for, and no link or index is followed out of it."""
    spoil, word = PLACES[case]
    spoil(directory)
    ended = attempt(capfd)
    if case == "the index is empty":
        assert ended.code == 0, "it stands beside a model in one file, which is read"
        return
    assert ended.code == 2, ended
    assert word in ended.err


@pytest.mark.parametrize("case", ASKS)
def test_a_directory_that_asks_for_too_much(case, directory, capfd):
    spoil, word = ASKS[case]
    spoil(directory)
    ended = attempt(capfd)
    assert ended.code == 2, ended
    assert word in ended.err


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.long] * (case in SLOW)) for case in TEMPLATES],
)
def test_a_template_ends(case, directory, capfd):
    """Whatever it does, with a time and a size."""
    source, word = TEMPLATES[case]
    written("model/" + TEMPLATE, source)(directory)
    ended = attempt(capfd)
    assert ended.code == 2, ended
    assert word in ended.err


def test_a_template_that_was_stopped_stops_no_other(directory, capfd):
    written("model/" + TEMPLATE, LOOPS + CHAT)(directory)
    ended = attempt(capfd)
    assert ended.code == 2
    assert "more than 5 s" in ended.err
    assert attempt(capfd, LINE.replace("./model", "./sharded")).code == 0


@pytest.mark.parametrize("part", PANICS)
def test_a_tokenizer_that_panics(part, directory, capfd):
    """A panic in Rust is no `Exception`: it goes through every handler of those."""
    edit_json(directory / "model" / TOKENIZER, **{part: PANICS[part]})
    ended = attempt(capfd)
    assert ended.code == 2
    assert "tokenizer" in ended.err


def test_what_generation_is_asked_for_is_not_heeded(directory, capfd):
    """Answers are greedy: of generation_config.json, the ids that end a text are read alone."""
    line = "generate ./model --dataset rows.jsonl --max-new-tokens 4 --split all -o"
    assert attempt(capfd, f"{line} before.jsonl").code == 0
    edit_json(directory / "model" / GENERATION, **UNHEEDED[GENERATION])
    assert attempt(capfd, f"{line} after.jsonl").code == 0  # keeps its answers beside it
    before, after = ((directory / name).read_text() for name in ("before.jsonl", "after.jsonl"))
    assert after == before


# What is not heeded.

OUTSIDE = "../outside/evil"
UNHEEDED: dict[str, dict[str, Any]] = {
    CONFIG: {
        "attn_implementation": "evil/kernel", "_attn_implementation": "evil/kernel",
        "_attn_implementation_internal": "evil/kernel", "experts_implementation": "evil/kernel",
        "use_kernels": True, "transformers_weights": OUTSIDE, "_name_or_path": "evil/model",
        "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"},
    },
    SETTINGS: {
        "vocab_file": OUTSIDE, "tokenizer_file": OUTSIDE, "merges_file": OUTSIDE,
        "special_tokens_map_file": OUTSIDE, "fast_tokenizer_files": ["../outside/tokenizer.1.json"],
        "name_or_path": OUTSIDE, "init_inputs": [OUTSIDE], "local_files_only": False,
        "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
        "sp_model_kwargs": {"model_file": OUTSIDE},
    },
    GENERATION: {"custom_generate": OUTSIDE, "num_beams": 10**9, "cache_implementation": "evil"},
}  # fmt: skip
"""Words by which a library would run code, fetch a kernel, or read what lies elsewhere."""
GUARD = """
import sys
seen = []
def guard(event, arguments):
    if event == "open" and "outside" in str(arguments[0]):
        seen.append(arguments[0])
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system"):
        seen.append(event)
sys.addaudithook(guard)
from mrpo_tools.cli import run
code = max(run(line.split()) for line in sys.argv[1:])
print("seen", seen, sorted(name for name in sys.modules if "evil" in name))
raise SystemExit(code)
"""


def test_the_words_of_a_directory_open_nothing_and_run_nothing(directory):
    """The same numbers as without them; nothing outside is opened, no code of the directory's is
    imported, no kernel and no network is asked for."""
    shutil.copytree("model", "evil")
    (directory / "outside").mkdir()
    for name in ("evil", "tokenizer.1.json"):
        shutil.copy(directory / "model" / TOKENIZER, directory / "outside" / name)
    for name in ("evil.py", "generate.py", "sitecustomize.py", "custom_generate/generate.py"):
        path = directory / "evil" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("open('canary', 'w')")
    for name, values in UNHEEDED.items():
        edit_json(directory / "evil" / name, **values)
    lines = [LINE.replace("model", name).replace("--cache cache", f"--cache {name}-cache")
             for name in ("model", "evil")]  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-c", GUARD, *lines], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert "seen [] []" in ended.stdout
    assert not (directory / "canary").exists()
    assert numbers("evil-cache") == numbers("model-cache")


def numbers(cache: str) -> list[float]:
    """The log-probs of a cache, in the order of the responses' ids."""
    import pyarrow.parquet as pq

    [part] = Path(cache).glob("references/*/*.parquet")
    table = pq.read_table(part).sort_by("response_id")
    assert all(math.isfinite(value) for value in table["logp"].to_pylist())
    return table["logp"].to_pylist()


def test_a_snapshot_of_the_hubs_cache_links_into_its_own_blobs(directory, capfd):
    """And nowhere else, nor into blobs that are a link themselves."""
    repository = directory / "models--org--name"
    snapshot, blobs = repository / "snapshots" / "0123", repository / "blobs"
    snapshot.parent.mkdir(parents=True)
    (directory / "model").rename(snapshot)
    blobs.mkdir()
    for path in [*snapshot.iterdir()]:
        path.rename(blobs / f"{path.name}-blob")
        path.symlink_to(f"../../blobs/{path.name}-blob")
    line = LINE.replace("./model", str(snapshot))
    assert attempt(capfd, line).code == 0
    blobs.rename(directory / "elsewhere")
    blobs.symlink_to(directory / "elsewhere")
    ended = attempt(capfd, line)
    assert ended.code == 2
    assert "out of its directory" in ended.err


# Adapters.

ADAPTERS: dict[str, tuple[Callable[[Path], object], str]] = {
    **{f"begins as {name}": (edited("adapter/" + ADAPTER, init_lora_weights=name), name)
       for name in ("pissa", "pissa_niter_4", "olora", "eva", "corda", "loftq", "evil")},
    "layer replication": (edited("adapter/" + ADAPTER, layer_replication=[[0, 10**6]]),
                          "layer_replication"),
    "a giant rank": (edited("adapter/" + ADAPTER, r=10**9), "1,000,000,000"),
    "a giant rank for some": (edited("adapter/" + ADAPTER, rank_pattern={"q_proj": 10**6}),
                              "1,000,000"),
    "a pattern that takes for ever": (
        edited("adapter/" + ADAPTER, rank_pattern={"((a|.)+)+!": 4}), "rank_pattern"),
    "another kind": (edited("adapter/" + ADAPTER, peft_type="PREFIX_TUNING"), "PREFIX_TUNING"),
    "no kind": (edited("adapter/" + ADAPTER, peft_type=[1]), "peft_type"),
    "no such layer": (edited("adapter/" + ADAPTER, target_modules=["evil"]), "evil"),
    "a megatron": (edited("adapter/" + ADAPTER, megatron_config={"a": 1}), "megatron_config"),
    "weights that are none": (written("adapter/adapter_model.safetensors", b"evil"), "safetensors"),
    "weights that are a FIFO": (
        instead("adapter/adapter_model.safetensors", os.mkfifo), "no regular file"),
    "weights outside": (moved_out("adapter/adapter_model.safetensors"), "out of its directory"),
    "settings outside": (moved_out("adapter/" + ADAPTER), "out of its directory"),
}  # fmt: skip


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_that_is_no_ordinary_one(case, directory, capfd):
    spoil, word = ADAPTERS[case]
    spoil(directory)
    ended = attempt(capfd, ADAPTED)
    assert ended.code == 2, ended
    assert word in ended.err


def test_targets_by_a_pattern_are_those_of_the_weights(directory, capfd):
    """A pattern is never matched: it could take for ever; the numbers are the same."""
    assert attempt(capfd, ADAPTED.replace("--cache cache", "--cache named")).code == 0
    edit_json(directory / "adapter" / ADAPTER, target_modules="((.)+)+(q_proj|v_proj)")
    assert attempt(capfd, ADAPTED.replace("--cache cache", "--cache matched")).code == 0
    assert numbers("named") == numbers("matched")


# A wrong type in every field, and damage anywhere.

OWN_FIELDS: dict[str, list[str]] = {
    "model/" + CONFIG: [
        "sliding_window", "use_sliding_window", "text_config", "layer_types", "rope_scaling",
        "num_experts", "n_layer", "torch_dtype", "problem_type",
    ],
    "model/" + SETTINGS: [
        "added_tokens_decoder", "extra_special_tokens", "additional_special_tokens",
        "chat_template", "padding_side", "add_prefix_space", "split_special_tokens",
    ],
    "model/" + TOKENIZER: [], "model/" + GENERATION: ["num_beams", "temperature"],
    "adapter/" + ADAPTER: [], "sharded/" + INDEX: [],
}  # fmt: skip
"""Files of JSON, and fields to spoil beside those that they hold."""


def fields_of(root: Path) -> list[tuple[str, str]]:
    return [
        (name, field)
        for name, more in OWN_FIELDS.items()
        for field in dict.fromkeys([*read_json(root / name), *more])
    ]


def spoil_fields(honest: Path, capfd: Any, per_field: int) -> None:
    """Each field in turn with values of other types; every answer is a number or one line."""
    chance = random.Random(0)
    for name, field in fields_of(honest):
        before = (honest / name).read_bytes()
        for value in chance.sample(WRONG, per_field):
            shutil.rmtree("cache", ignore_errors=True)
            edit_json(Path(name), **{field: value})
            folder = name.partition("/")[0]
            line = ADAPTED if folder == "adapter" else LINE.replace("model", folder)
            try:
                attempt(capfd, line)
            except BaseException as error:
                raise AssertionError(f"{name}: {field} = {value!r}") from error
            finally:
                Path(name).write_bytes(before)


def test_a_wrong_type_in_a_field(honest, capfd):
    spoil_fields(honest, capfd, 1)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_wrong_type_in_every_field(honest, capfd):
    spoil_fields(honest, capfd, len(WRONG))


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, cut out, repeated, or a number made another."""
    data = bytearray(content)
    place = chance.randrange(len(data))
    span = chance.choice((1, 1, 2, 8, 100))
    kind = chance.choice(("flip", "cut", "repeat", "digit", "end"))
    if kind == "flip":
        data[place] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del data[place : place + span]
    elif kind == "repeat":
        data[place:place] = data[place : place + span]
    elif kind == "end":
        del data[place:]
    else:
        digits = [index for index, byte in enumerate(data) if 48 <= byte <= 57] or [place]
        data[chance.choice(digits)] = chance.choice(b"0123456789-")
    return bytes(data)


def mutate(honest: Path, capfd: Any, seeds: range) -> None:
    names = [
        *OWN_FIELDS,
        "model/" + WEIGHTS,
        "model/" + TEMPLATE,
        "adapter/adapter_model.safetensors",
    ]
    for seed in seeds:
        chance = random.Random(seed)
        name = chance.choice(names)
        before = (honest / name).read_bytes()
        head = before[:4000] if name.endswith(".safetensors") else before
        shutil.rmtree("cache", ignore_errors=True)
        Path(name).write_bytes(mutated(head, chance) + before[len(head) :])
        folder = name.partition("/")[0]
        try:
            attempt(capfd, ADAPTED if folder == "adapter" else LINE.replace("model", folder))
        except BaseException as error:
            raise AssertionError(f"{name}, seed {seed}") from error
        finally:
            Path(name).write_bytes(before)


def test_some_damage(honest, capfd):
    mutate(honest, capfd, range(20))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_three_hundred_mutations(honest, capfd):
    mutate(honest, capfd, range(300))
