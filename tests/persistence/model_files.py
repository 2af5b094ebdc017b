"""Small models for the tests of files, what they predict, and files taken apart and forged."""

import hashlib
import io
import json
import warnings
import zipfile

import numpy as np

from sklearn_cfll import CFLLClassifier, CFLLIVRegressor, CFLLRegressor

rng = np.random.default_rng(0)
X = rng.normal(size=(90, 3))
Y = X[:, 0] + 0.1 * rng.normal(size=90)
LABELS = np.array(["no", "yes", "perhaps"])[rng.integers(0, 3, 90)]
Z = X[:, :1] + rng.normal(size=(90, 1))


def small_regressor(**parameters):
    defaults = {"max_epochs": 2, "random_state": 0}
    if "backbone" not in parameters:
        defaults |= {"hidden_layer_sizes": (6,), "n_members": 2}
    return CFLLRegressor(**{**defaults, **parameters})


def outputs(model):
    """Everything that is predicted, as bytes."""
    if isinstance(model, CFLLIVRegressor):
        parts = model.predict(X[:, :1], return_std=True)
    elif isinstance(model, CFLLClassifier):
        parts = (model.predict(X), model.predict_proba(X))
    else:
        parts = (*model.predict(X, return_std=True), *model.predict_interval(X, 0.8))
    return b"".join(np.asarray(part).tobytes() for part in parts)


def members(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def zipped(parts, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two members of one name
        with zipfile.ZipFile(file, "w", compression) as archive:
            for name, raw in parts:
                archive.writestr(name, raw)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), version=(1, 0))
    return file.getvalue()


def json_of(data):
    return json.loads(np.load(io.BytesIO(data))["content"].tobytes())


def forged(data, content, arrays=()):
    """A file whose digests agree with another content and other arrays."""
    parts = {**members(data), **dict(arrays)}
    digests = {key: hashlib.sha256(parts[f"{key}.npy"]).hexdigest() for key in content["sha256"]}
    text = content if isinstance(content, bytes) else json.dumps({**content, "sha256": digests})
    parts["content.npy"] = npy(np.frombuffer(text.encode(), np.uint8))
    digest = hashlib.sha256(parts["content.npy"]).digest()
    parts["digest.npy"] = npy(np.frombuffer(digest, np.uint8))
    return zipped(parts.items())


def set_in(state, path, value):
    """Change one value of an encoded state: a path of keys."""
    *parents, last = path
    for key in parents:
        pairs = state["dict"] if "dict" in state else state.items()
        state = next(v for k, v in pairs if k == key)
    if "dict" in state:
        state["dict"] = [[k, value if k == last else v] for k, v in state["dict"]]
        if last not in [k for k, _ in state["dict"]]:
            state["dict"].append([last, value])
    else:
        state[last] = value


def found_in(state, path):
    """The value at a path of keys, as in `set_in`."""
    for key in path:
        state = next(v for k, v in (state.get("dict") or state.items()) if k == key)
    return state


MODELS = {
    "regressor": lambda: small_regressor().fit(X, Y),
    "classifier": lambda: CFLLClassifier(
        hidden_layer_sizes=(6,), max_epochs=2, random_state=0, optimizer="sgd", warm_start=True
    ).fit(X, LABELS),
    "instruments": lambda: CFLLIVRegressor(
        instrument_hidden_sizes=(4,), n_folds=2, n_repeats=1, max_epochs=2, random_state=0
    ).fit(X[:, :1], Y, Z=Z),
}
