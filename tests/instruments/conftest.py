"""Shared by the tests of fits with instruments."""

import pytest

from sklearn_cfll.instruments.partially_linear import SMOOTH


@pytest.fixture(autouse=True, scope="module")
def _short_fits_to_the_controls(request):
    """Networks of the controls train for a few epochs where what they predict is not tested.

    They take most of the time of a small fit.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__ != "test_effect":
            patch.setitem(SMOOTH, "max_epochs", 3)
        yield
