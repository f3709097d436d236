"""docs/ops.md's snippets run as they are written, one after another."""

import pathlib
import re

import jax
import numpy as np

TEXT = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "ops.md").read_text()


def test_snippets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, first = {}, {}
    for text in re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        exec(text, names)
        first = first or dict(names)
    expected = jax.lax.conv_general_dilated(
        first["x"], first["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(first["y"], expected, rtol=1e-3, atol=1e-3)
    assert first["z"].shape == (8, 16, 16, 16)
    assert list(tmp_path.iterdir()) == []
