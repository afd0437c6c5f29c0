"""The method `refined`: no text is measured under coefficients that were learned from it."""

import numpy as np
import pytest
import torch

from flows.specialists import refine
from pipeline.specialists.domain_weights import Assignment
from pipeline.specialists.sets import SpecialistSet
from soe_model.specialists.refining import LOOKS
from tests.flows.specialists.test_blend import LENGTH, K, Meter

START = torch.full((K,), 0.5)


class LongMeter(Meter):
    """Losses fall by `better` with each look, for each text by another bit; all windows are of the full length."""

    length = LENGTH
    better = 0.1

    def losses_of_some(self, coefficients_WN, windows, measured, *, check):
        super().losses_of_some(coefficients_WN, windows, measured, check=check)
        of_looks = -self.better * torch.tensor([0.0, *LOOKS, 0.0])[:, None]
        return {name: of_looks * (1 + some[:, 0] / 100) for name, some in windows.items()}


@pytest.fixture
def learned(monkeypatch):
    """Texts that were learned from, in each descent; its coefficients bear their number."""
    found = []

    def coefficients_after(soup, start_N, windows_nL1, learning, looks, *, check):
        found.append(set(windows_nL1[:, 0].tolist()))
        return torch.stack([start_N + 10 * len(found) + look for look in looks])

    monkeypatch.setattr(refine, "coefficients_after", coefficients_after)
    return found


def refined(meter, documents):
    texts = [str(number) for number in range(len(documents))]
    one = SpecialistSet(name="a", texts=texts, evaluation=[], documents=documents)
    assignment = Assignment(
        domains_N=np.array(documents), distances_N=np.ones(len(texts)), num_domains=K, training_distance=1.0
    )
    return refine.refined_coefficients(meter, one, assignment, START, 0.5)


def test_no_text_is_measured_under_coefficients_that_were_learned_from_it(learned):
    meter, documents = LongMeter(), [0, 0, 1, 2, 3, 3, 3, 4]
    found_N, said = refined(meter, documents)
    one, other, everyone = learned
    assert one | other == everyone == set(range(8)) and not one & other
    assert {documents[text] for text in one}.isdisjoint(documents[text] for text in other)
    for text, (begun_N, *looks_SN, generic_N) in meter.measured:
        descent = 1 + (text in one)  # the second one is of the texts that the first one did not see
        for look, look_N in zip(LOOKS, looks_SN, strict=True):
            assert torch.equal(look_N, begun_N + 10 * descent + look)
        assert begun_N[documents[text]] == pytest.approx(0.5 / K) and torch.equal(generic_N, meter.generic_N)
    assert said["refined"]["steps"] == LOOKS[-1] and torch.equal(found_N, START + 30 + LOOKS[-1])


def test_where_nothing_surely_helps_the_start_is_kept(learned):
    meter = LongMeter()
    meter.better = -0.1
    found_N, said = refined(meter, [0, 1, 2, 3, 4])
    assert torch.equal(found_N, START) and len(learned) == 2
    assert said["refined"]["steps"] == 0 and said["refined"]["units"] == 5


@pytest.mark.parametrize("documents", [[0], [0, 1, 2], [0] * 10])
def test_of_few_documents_nothing_is_learned(learned, documents):
    found_N, said = refined(LongMeter(), documents)
    assert torch.equal(found_N, START) and not learned and said["refined"]["steps"] == 0


def test_of_texts_shorter_than_a_window_nothing_is_learned(learned):
    meter = LongMeter()
    meter.length = LENGTH + 1
    found_N, said = refined(meter, [0, 1, 2, 3])
    assert torch.equal(found_N, START) and not learned and said["refined"]["steps"] == 0
