"""Lean imports: the same model with fewer libraries, which can still be imported afterwards."""

from __future__ import annotations

import gc
import subprocess
import sys
from types import ModuleType

import pytest

from open_clt import lean_imports
from open_clt.lean_imports import is_tested, paused_collection

LOGITS = """
import torch
from open_clt.language.language_model import load_language_model
def logits():
    model = load_language_model("embedded")
    return model.logits(torch.arange(9)[None]).flatten().tolist()
"""
LEAN = """
import sys
from open_clt.lean_imports import lean_imports
before = {*sys.modules}
with lean_imports():
    lean = logits()
loaded = {name.partition(".")[0] for name in {*sys.modules} - before}
assert not loaded & {"datasets", "pandas", "pytest", "sympy"}, loaded
assert not [name for name in sys.modules if name.startswith(("torch._dynamo", "torch.distributed.tensor"))
            and not name.endswith("_trace_wrapped_higher_order_op")]
assert "scipy.optimize" not in sys.modules
from transformers.utils.import_utils import create_import_structure_from_path as names_of_models
assert names_of_models.cache_info().misses < 800, names_of_models.cache_info()  # 551 folders; two scans are 1,100
"""
LATER = """
import datasets, pandas, pytest, torch._dynamo, torch.distributed
import transformer_lens.utilities.hf_utils as utilities
assert datasets.Dataset.from_dict({"a": [1]}).num_rows == 1
assert utilities.Dataset is not datasets.Dataset and pandas.DataFrame({"a": [1]}).shape == (1, 1)
from transformers.loss import loss_for_object_detection
assert loss_for_object_detection.linear_sum_assignment([[1.0, 0.0], [0.0, 1.0]])[1].tolist() == [1, 0]
assert "minimize" in dir(__import__("scipy.optimize").optimize)
import transformer_lens.patching
assert transformer_lens.patching.pd.DataFrame is pandas.DataFrame
assert pytest.mark and torch.distributed.is_available()
assert torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(1)) == 2
assert torch.nn.init.ones_(torch.zeros(1)) == 1
print(lean == logits(), sum(lean))
"""


def test_the_installed_versions_are_among_the_tested_ones() -> None:
    """If this fails, run the slow test below and benchmarks/cold_start.py with the new versions, and then name them."""
    assert is_tested()


def test_the_search_for_garbage_goes_on_after_the_block() -> None:
    with paused_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_placeholder_is_removed_and_a_package_that_is_imported_stays() -> None:
    place = {"open_clt_absent": ModuleType("open_clt_absent"), "json": ModuleType("json")}
    json = sys.modules["json"]
    with lean_imports._placed({**place}):
        assert sys.modules["open_clt_absent"] is place["open_clt_absent"]
        assert sys.modules["json"] is json
    assert "open_clt_absent" not in sys.modules
    assert sys.modules["json"] is json


def test_a_package_that_is_imported_later_has_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with lean_imports._placed({"colorsys": lean_imports._Later("colorsys")}):
        import colorsys
    assert colorsys.hsv_to_rgb(0, 0, 1) == (1, 1, 1)
    assert sys.modules["colorsys"] is not colorsys


@pytest.mark.slow
def test_a_model_is_the_same_and_left_out_libraries_can_be_imported_later() -> None:
    lean, plain = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        for code in (f"{LOGITS}{LEAN}{LATER}", f"{LOGITS}print(sum(logits()))")
    )
    assert lean.stdout.split() == ["True", *plain.stdout.split()], lean.stderr
