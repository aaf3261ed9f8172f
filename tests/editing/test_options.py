"""Options are checked where they are made, and equal options are equal keys of a batch."""

import pytest

from ldm.editing.options import Sampling
from ldm.util import UserError


def test_an_interval_may_be_a_list_as_json_has_it():
    sampling = Sampling(interval=[0, 850])
    assert sampling == Sampling(interval=(0, 850)) and hash(sampling) == hash(Sampling(interval=(0, 850)))


@pytest.mark.parametrize("interval", [(500, 200), (-1, 5), (5,), (1, 2, 3), ()])
def test_an_interval_is_its_first_and_last_timestep(interval):
    with pytest.raises(UserError, match="give the first and the last, for instance"):
        Sampling(interval=interval)
