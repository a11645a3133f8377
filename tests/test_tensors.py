"""Tensors of safetensors files, a few at a time: as the library reads them, or refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mrpo_tools.errors import ResourceError, UsageError
from mrpo_tools.references.tensors import WeightReader

KINDS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8,
         torch.uint8, torch.bool)  # fmt: skip


@pytest.fixture
def shard(tmp_path) -> Path:
    """A file of a tensor of every kind, a scalar, and one without numbers."""
    torch.manual_seed(0)
    tensors = {str(kind): (9 * torch.randn(3, 5)).to(kind) for kind in KINDS}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4)}
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def test_every_tensor_is_as_the_library_reads_it(shard):
    truth, reader = load_file(shard), WeightReader(shard.parent)
    found = reader.read(truth)
    assert set(found) == set(truth) == set(reader.places)
    for name, tensor in truth.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)
    assert reader.bytes_of(truth) == sum(tensor.nbytes for tensor in truth.values())


def header_of(shard: Path) -> tuple[dict, bytes]:
    whole = shard.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def with_header(shard: Path, change) -> None:
    header, data = header_of(shard)
    change(header)
    text = json.dumps(header).encode()
    shard.write_bytes(len(text).to_bytes(8, "little") + text + data)


def wider(header: dict) -> None:
    header["scalar"]["shape"] = [2]


def before_the_data(header: dict) -> None:
    header["scalar"]["data_offsets"] = [-4, 0]


def of_eight_bits(header: dict) -> None:
    header["scalar"]["dtype"] = "F8_E4M3"


def without_its_place(header: dict) -> None:
    del header["scalar"]["data_offsets"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda shard: shard.write_bytes(shard.read_bytes()[:-1]), r"is torn: it has [\d,]+ bytes"),
        (lambda shard: shard.write_bytes(shard.read_bytes() + b"0"), "is torn"),
        (lambda shard: shard.write_bytes(b""), "cannot be read as safetensors"),
        (lambda shard: shard.write_bytes(b"\xff" * 100), "header is longer than the file"),
        (lambda shard: shard.write_bytes((50).to_bytes(8, "little") + b"{" * 50), "safetensors"),
        (lambda shard: with_header(shard, wider), "other bytes than its shape needs"),
        (lambda shard: with_header(shard, before_the_data), "other bytes than its shape needs"),
        (lambda shard: with_header(shard, of_eight_bits), "numbers in format F8_E4M3"),
        (lambda shard: with_header(shard, without_its_place), "cannot be read as safetensors"),
    ],
)
def test_a_damaged_file_is_refused_before_anything_is_read(damage, words, shard):
    damage(shard)
    with pytest.raises(UsageError, match=words) as refused:
        WeightReader(shard.parent)
    assert str(shard) in str(refused.value)


def test_a_file_that_goes_or_shrinks_later(shard):
    reader = WeightReader(shard.parent)
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-200])
    with pytest.raises(UsageError, match=re.escape("model.safetensors ends inside tensor")):
        reader.read(reader.places)
    shard.unlink()
    with pytest.raises(ResourceError, match="cannot be read: No such file") as refused:
        reader.read(["scalar"])
    assert "the same command goes on from here" in refused.value.hint
