"""The private names of transformers that the project uses are where it says they are."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest
import transformers

from mrpo_tools.references import transformers_private
from mrpo_tools.references.transformers_private import PRIVATE_NAMES, PrivateName
from mrpo_tools.training.trainer import GroupTrainer

PACKAGE = Path(transformers_private.__file__).parent.parent


def moved(private: PrivateName) -> str | None:
    """What is other than the table says, in a sentence; None where nothing is."""
    versions = f"last seen in transformers {private.last_seen}; here is {transformers.__version__}"
    place = importlib.import_module(private.module)
    for step in private.name.split("."):
        owner, place = place, getattr(place, step, None)
    if place is None and f" self.{step} = " not in inspect.getsource(owner):
        return f"transformers moved or removed {private.module}.{private.name} ({versions})"
    if private.parameters is None:
        return None
    names = tuple(name for name in inspect.signature(place).parameters if name != "self")
    change = f"{private.name} takes {names} and not {private.parameters} any more ({versions})"
    return None if names == private.parameters else change


@pytest.mark.parametrize("private", PRIVATE_NAMES, ids=lambda private: private.name)
def test_a_private_name_is_where_it_was(private):
    assert moved(private) is None


def test_a_name_that_moved_is_told():
    gone = PrivateName("transformers", "Trainer._no_such_method", (), "", "5.0")
    changed = PrivateName("transformers", "Trainer._save", ("folder",), "", "5.0")
    assert "moved or removed transformers.Trainer._no_such_method" in moved(gone)
    assert "last seen in transformers 5.0" in moved(gone)
    assert "('output_dir', 'state_dict') and not ('folder',)" in moved(changed)


def test_every_overridden_private_method_is_in_the_table():
    private = {name for name in vars(GroupTrainer) if re.match(r"_[a-z]", name)}
    overridden = {f"Trainer.{name}" for name in private if hasattr(transformers.Trainer, name)}
    table = {row.name for row in PRIVATE_NAMES}
    assert overridden == {name for name in table if name.startswith("Trainer.")}


def test_private_names_are_used_in_their_module_alone():
    """Others call its functions; the Trainer's methods are overridden where the Trainer is."""
    names = [row.name for row in PRIVATE_NAMES if not row.name.startswith("Trainer.")]
    any_of = re.compile(rf"\b({'|'.join(name.rpartition('.')[2] for name in names)})\b")
    users = {path.name for path in PACKAGE.rglob("*.py") if any_of.search(path.read_text("utf-8"))}
    assert users == {"transformers_private.py"}
