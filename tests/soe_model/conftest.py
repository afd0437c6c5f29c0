"""A small trained soup, made once."""

from tests.soe_model.toy_soup import made  # noqa: F401  (a fixture)
