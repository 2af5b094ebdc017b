"""All of scikit-learn's estimator checks, with no expected failure, in six configurations."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_cfll import CFLLClassifier, CFLLRegressor, ColumnEncoder

# Of the default size once is enough: the others differ in how they train, not in their width.
NARROW = {"hidden_layer_sizes": (16, 16), "n_members": 4, "max_epochs": 20}
UNSCALED = NARROW | {"columns": ColumnEncoder(importance=False)}
OTHERS = [
    {"batch_size": "full"},
    {"memory": "statistics"},
    {"update_order": "backbone_first"},
    {"refit_last_layer": False},
]


def estimators(**parameters):
    return [CFLLRegressor(**parameters), CFLLClassifier(**parameters)]


@parametrize_with_checks(estimators(**NARROW))
def test_narrow_networks(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(estimators())
def test_defaults(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [each for parameters in OTHERS for each in estimators(**UNSCALED, **parameters)]
)
def test_other_configurations(estimator, check):
    check(estimator)
