"""Searches whose fits joblib sends to Dask's or Ray's workers find what they find here."""

import joblib
import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV

from helpers import friedman, small
from sklearn_cfll import CFLLRegressor

pytestmark = pytest.mark.slow


def search(n_jobs):
    return GridSearchCV(small(CFLLRegressor), {"ridge": [0.1, 10.0]}, cv=2, n_jobs=n_jobs)


def assert_found_alike(found):
    X, y = friedman(200)
    wanted = search(1).fit(X, y)
    scores = [each.cv_results_["mean_test_score"] for each in (found, wanted)]
    assert np.array_equal(*scores)
    assert np.array_equal(found.predict(X), wanted.predict(X))


def test_dask_workers_fit_the_candidates():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=None),
        joblib.parallel_config(backend="dask"),
    ):
        found = search(2).fit(*friedman(200))
    assert_found_alike(found)


def test_ray_workers_fit_the_candidates():
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.util.joblib").register_ray()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with joblib.parallel_config(backend="ray"):
            found = search(2).fit(*friedman(200))
    finally:
        ray.shutdown()
    assert_found_alike(found)
