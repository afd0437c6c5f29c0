"""The method `blended`: no text is measured under domain weights that it chose, and no more is measured than needed."""

from types import SimpleNamespace

import numpy as np
import torch

from flows.specialists import blend
from pipeline.specialists.domain_weights import Assignment
from pipeline.specialists.sets import SpecialistSet

K, LENGTH = 12, 8


class Meter:
    """In place of a soup: coefficients are the domain weights, a token is the number of its text."""

    def __init__(self, windows_per_text=1):
        self.windows_per_text = windows_per_text
        self.soup = SimpleNamespace(
            generic_weights=np.full(K, 1 / K), coefficients=lambda weights_WK: weights_WK
        )
        self.generic_N = torch.full((K,), 1 / K)
        self.measured = []
        """Number of a text, and the domain weights [5, K] that one of its windows was measured under."""

    def windows(self, texts):
        numbers = torch.tensor([int(text) for text in texts for _ in range(self.windows_per_text)])
        return numbers[:, None].expand(-1, LENGTH + 1)

    def losses_of_some(self, coefficients_WN, windows, measured, *, check):
        for name, windows_nL1 in windows.items():
            self.measured += [(int(one[0]), coefficients_WN[measured[name]]) for one in windows_nL1]
        return {name: torch.zeros(len(measured[name]), len(some)) for name, some in windows.items()}


def blended(meter, documents):
    """Each text lies in the domain of its document."""
    texts = [str(number) for number in range(len(documents))]
    one = SpecialistSet(name="a", texts=texts, evaluation=[], documents=documents)
    found = Assignment(
        domains_N=np.array(documents), distances_N=np.ones(len(texts)), num_domains=K, training_distance=1.0
    )
    return blend.blended_weights(meter, [one], [found], lambda texts: None)


def test_no_text_is_measured_under_domain_weights_that_its_document_chose():
    meter, documents = Meter(), [0, 0, 1, 2, 3, 3, 3, 4]
    blended(meter, documents)
    assert sorted({number for number, _ in meter.measured}) == list(range(8))
    for number, weights_SK in meter.measured:
        generic, *quarters, whole = weights_SK.numpy()
        assert np.allclose(generic, 1 / K) and len(quarters) == 3
        assert whole[documents[number]] == 0 and np.isclose(whole.sum(), 1)
        assert np.isclose(quarters[1][documents[number]], 0.5 / K)


def test_where_nothing_is_better_it_is_the_generic_mixture():
    weights_WK, [said] = blended(Meter(), [0, 1, 2, 3])
    assert np.allclose(weights_WK, 1 / K)
    assert said["blend"]["share"] == 0 and said["blend"]["units"] == 4 and said["blend"]["of"] == "documents"


def test_no_more_is_measured_than_is_enough(monkeypatch):
    monkeypatch.setattr(blend, "MOST_TOKENS", 10 * LENGTH)
    meter = Meter(windows_per_text=7)
    blended(meter, [0, 1, 2, 3])
    assert len(meter.measured) == 10
    assert {number for number, _ in meter.measured} == {0, 1, 2, 3}  # a window of each first
