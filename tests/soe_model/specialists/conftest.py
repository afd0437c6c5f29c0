"""The toy soup, opened anew for each test."""

import pytest

from soe_model.files.soup import SoupOfExperts


@pytest.fixture
def soup(made):
    return SoupOfExperts.open(made[0])
