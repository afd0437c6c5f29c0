"""What a job's settings say of how specialists are made."""

from types import SimpleNamespace

import pytest

from flows.settings import Specialize
from flows.specialists.methods import default_method, method_of
from pipeline.specialists.sets import SpecialistSet


def test_by_itself_the_rate_of_coefficients_is_relative_and_a_given_one_is_not():
    """As recipes and settings of older releases mean it."""
    one = SpecialistSet(name="a", texts=["x"], evaluation=[], unseen_source=False)
    by_itself = method_of(Specialize(method="learned-coefficients"))
    assert by_itself.learning.relative and by_itself.learning.learning_rate * 0.2 == pytest.approx(0.02)
    assert by_itself.how(one)["learning"]["relative"] is True
    for settings in (dict(method="learned-coefficients", learning_rate=0.02), dict(method="fine-tuned")):
        given = method_of(Specialize(**settings))
        assert not given.learning.relative and "relative" not in given.how(one)["learning"]


@pytest.mark.parametrize(
    "parameters, experts, method",
    [(1_000_000, 29, "refined"), (1_000_000, 30, "blended"), (1_000_000, 0, "blended")],
)
def test_by_itself_only_specialists_of_small_banks_are_refined(parameters, experts, method):
    """A descent of sixty steps reads the bank a hundred times. A twin has no coefficients to learn."""
    bank, config = SimpleNamespace(num_params=parameters), SimpleNamespace(num_experts=experts)
    soup = SimpleNamespace(bank=bank, config=config)
    assert default_method(soup) == method
