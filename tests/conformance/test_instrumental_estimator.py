"""All of scikit-learn's estimator checks on CFLLIVRegressor, with no expected failure."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_cfll import CFLLIVRegressor

# Without Z the treatment is its own instrument. Few epochs: checks are about manners.
CONFIGURATIONS = [
    CFLLIVRegressor(max_epochs=5),
    CFLLIVRegressor(max_epochs=2, n_folds=2, n_repeats=1, batch_size=64, precision="float64"),
    CFLLIVRegressor(treatment_backbone="identity", stage2_ridge=1e-3, max_epochs=5),
]


@parametrize_with_checks(CONFIGURATIONS)
def test_conformance(estimator, check):
    check(estimator)
