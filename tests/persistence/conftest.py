"""Files of one model of each kind."""

import warnings

import pytest

from model_files import MODELS, outputs


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Of each model its class, its file's bytes and what it predicts."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so few rows, so weak instruments
        for name, make in MODELS.items():
            path, model = tmp_path_factory.mktemp(name) / "model.npz", make()
            model.save(path)
            found[name] = type(model), path.read_bytes(), outputs(model)
    return found
