"""Optional dependencies: a missing one is one sentence that names what to install."""

import importlib.util
import sys

import pytest

from ldm.util import EXTRAS, UserError, require


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_module_names_the_extra_that_installs_it(extra):
    with pytest.raises(UserError) as error:
        require("no_such_module.part", extra)
    assert str(error.value) == f"{EXTRAS[extra]} needs no_such_module: pip install 'paint-by-example[{extra}]'"


def test_an_installed_module_is_returned():
    assert require("json.decoder", "train") is sys.modules["json.decoder"]


def test_a_module_whose_own_import_is_missing_is_not_blamed(tmp_path, monkeypatch):
    (tmp_path / "installed_module.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("installed_module")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        require("installed_module", "train")
