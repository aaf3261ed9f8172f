"""The sweep that finds where scales make samplers unstable."""

import json

from ldm.miniworld.solvers import stable_scales, sweep, table, write


def test_a_row_is_stable_up_to_its_first_error(tmp_path):
    """Errors of a made-up model: a sampler gains 20 beyond its limit, and guidance itself costs 1 per scale for all."""
    scales = (1.0, 5.0, 10.0)
    limits = {("plms", 10): 1.0, ("plms", 50): 5.0, ("ddim", 10): 10.0}

    def score(sampling):
        return 15 + sampling.scale + 20 * (sampling.scale > limits[sampling.sampler, sampling.steps])

    cells = sweep(score, {"plms": (10, 50), "ddim": (10,)}, scales)
    assert cells["plms 50"] == [16, 20, 45] and list(cells) == ["plms 10", "plms 50", "ddim 10"]
    assert stable_scales(cells, scales) == {"plms 10": 1, "plms 50": 5, "ddim 10": 10}
    assert stable_scales({"a": [9.0, 1.0], "b": [1.0, 1.0]}, (1.0, 2.0)) == {"a": 0, "b": 2}
    assert table(cells, scales).splitlines()[3] == "| plms 50 | 16.0 | 20.0 | **45.0** |"
    write(tmp_path / "solvers.json", cells, scales)
    assert json.loads((tmp_path / "solvers.json").read_text())["stable_scale"]["plms 50"] == 5
