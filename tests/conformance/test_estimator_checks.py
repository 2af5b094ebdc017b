"""All of scikit-learn's estimator checks, with no expected failure, in five configurations."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_cfll import CFLLClassifier, CFLLRegressor

CONFIGURATIONS = {
    "defaults": {},
    "full_batch": {"batch_size": "full"},
    "statistics": {"memory": "statistics"},
    "other_order": {"update_order": "backbone_first"},
    "no_refit": {"refit_last_layer": False},
}


def estimators(**parameters):
    return [CFLLRegressor(**parameters), CFLLClassifier(**parameters)]


@parametrize_with_checks(estimators())
def test_defaults(estimator, check):
    check(estimator)


@parametrize_with_checks(
    [
        estimator
        for name, parameters in CONFIGURATIONS.items()
        if name != "defaults"
        for estimator in estimators(**parameters)
    ]
)
def test_other_configurations(estimator, check):
    check(estimator)
