"""Files of models that are damaged or made by hand are refused, or predict the same."""

import hashlib
import io
import json
import random
import time
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

import sklearn_cfll
from model_files import (
    MODELS,
    X,
    Y,
    forged,
    found_in,
    json_of,
    members,
    npy,
    outputs,
    set_in,
    small_regressor,
    zipped,
)
from sklearn_cfll import CFLLRegressor, ModelFileError
from sklearn_cfll.backbones import MLPBackbone

# -- damage -----------------------------------------------------------------------------------


def flip_bytes(data, draw):
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 8])):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(data, draw):
    start, stop = sorted((draw.randrange(len(data)), draw.randrange(len(data))))
    return draw.choice([data[:stop], data[start:], data[:start] + data[stop:]])


def overwrite(data, draw):
    start, length = draw.randrange(len(data)), draw.choice([1, 2, 4, 8, 100])
    filling = draw.choice([b"\x00", b"\xff", bytes([draw.randrange(256)])])
    return data[:start] + filling * length + data[start + length :]


def move(data, draw):
    """Some bytes of the file to another place in it."""
    start, length = draw.randrange(len(data)), draw.choice([4, 16, 64, 512])
    to = draw.randrange(len(data))
    return data[:to] + data[start : start + length] + data[to + length :]


def change_members(data, draw):
    """A proper archive again, its members doubled, exchanged, left out, compressed, changed."""
    parts = list(members(data).items())
    i, j = draw.randrange(len(parts)), draw.randrange(len(parts))
    (name, raw), (other, other_raw) = parts[i], parts[j]
    kind = draw.randrange(7)
    if kind == 0:
        parts.append((name, other_raw))
    elif kind == 1:
        parts[i], parts[j] = (name, other_raw), (other, raw)
    elif kind == 2:
        del parts[i]
    elif kind == 3:
        return zipped(parts, zipfile.ZIP_DEFLATED)
    elif kind == 4:
        parts[i] = (name, flip_bytes(raw[:128], draw) + raw[128:])  # an array's header
    elif kind == 5:
        parts[i] = (name, flip_bytes(raw, draw))
    else:
        parts.append((f"other_{i}.npy", raw))
    return zipped(parts)


DAMAGE = (flip_bytes, flip_bytes, cut, overwrite, move, change_members)
ODD = (None, True, -1, 0, 2, 10**12, 1e308, float("nan"), "", "cuda", "__class__", [], {}, [[]])
ODD += ({"array": "array_0"}, {"dict": []}, {"tuple": [1, 2]}, {"optimizer": "Optimizer"})
ODD += ({"range": [0, 10**18, 1]}, {"code": ["x", "backbone", True]}, {"dtype": "float8"})
ODD += ({"recipe": ["MLPBackbone", {"dict": [["hidden_layer_sizes", {"tuple": [10**9] * 2}]]}]},)
ODD += ({"recipe": ["Path", {"dict": []}]}, {"device": "meta"}, {"objects": [1]})


def change_json(data, draw):
    """Another value, key or length somewhere in the JSON text, with digests that agree."""
    content = json_of(data)
    places = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(content)
    for _ in range(draw.choice([1, 1, 2])):
        node, key = draw.choice(places)
        kind = draw.randrange(4)
        if kind == 0 and isinstance(node, list):
            node.append(draw.choice(ODD))
        elif kind == 1 and isinstance(node, dict):
            node[str(draw.choice(ODD))] = node.get(key)
        elif kind == 2 and isinstance(node, dict):
            node.pop(key, None)
        elif isinstance(node, dict) or key < len(node):
            node[key] = draw.choice(ODD)
    if not isinstance(content.get("sha256"), dict) or not set(content["sha256"]) <= {
        name.removesuffix(".npy") for name in members(data)
    }:
        return cut(data, draw)
    return forged(data, content)


def opened(cls, path, data):
    path.write_bytes(data)
    start = time.perf_counter()
    try:
        return cls.load(path)
    except ModelFileError:
        return None
    finally:
        assert time.perf_counter() - start < 20


def check_damaged(cls, data, before, path, draw):
    model = opened(cls, path, draw.choice(DAMAGE)(data, draw))
    assert model is None or outputs(model) == before
    return model is None


@pytest.mark.parametrize("name", MODELS)
def test_damaged_files_are_refused_or_predict_the_same(name, files, tmp_path):
    draw = random.Random(1)
    refused = [check_damaged(*files[name], tmp_path / "model", draw) for _ in range(150)]
    assert sum(refused) > 100


@pytest.mark.parametrize("name", MODELS)
def test_json_that_was_changed_with_its_digest_raises_nothing_else(name, files, tmp_path):
    cls, data, _ = files[name]
    draw = random.Random(2)
    refused = [opened(cls, tmp_path / "model", change_json(data, draw)) is None for _ in range(100)]
    assert sum(refused) > 30


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_thousands_of_damaged_files(name, files, tmp_path):
    draw = random.Random(3)
    for _ in range(1000):
        check_damaged(*files[name], tmp_path / "model", draw)
    for _ in range(300):
        opened(files[name][0], tmp_path / "model", change_json(files[name][1], draw))


# -- files made by hand -----------------------------------------------------------------------


def recipe(**parameters):
    encoded = [[key, value] for key, value in parameters.items()]
    return {"recipe": ["MLPBackbone", {"dict": encoded}]}


MODEL = ("_packed", "model")
NETWORK = (*MODEL, "network")
KNOWN_ROWS = ("_packed", "known_rows")
BY_HAND = {
    "a huge network": ((*NETWORK, "recipe"), recipe(hidden_layer_sizes=[20_000, 20_000])),
    "a network of many layers": ((*NETWORK, "recipe"), recipe(hidden_layer_sizes=[2] * 100_000)),
    "many members": ((*NETWORK, "recipe"), recipe(n_members=10**9)),
    "a huge sample": ((*NETWORK, "sample_shape"), {"tuple": [10**12]}),
    "many targets": ((*MODEL, "layout"), {"tuple": [{"tuple": [10**9]}, False]}),
    "another class": ((*NETWORK, "recipe"), {"recipe": ["Popen", {"dict": [["args", "true"]]}]}),
    "any optimiser": (("optimizer",), {"optimizer": "Optimizer"}),
    "no optimiser": (("_packed", "training", "optimizer_class"), "lr_scheduler"),
    "another dtype": ((*NETWORK, "dtype"), "load"),
    "a method": (("predict",), 1),
    "a property": (("backbone_",), 1),
    "a dunder": (("__class__",), "CFLLClassifier"),
    "unknown data": (("ridge",), {"pickle": "gASVBAAAAAAAAABLAS4="}),
    "one array many times": (("ridge",), [{"array": "array_0"}] * 1000),
    "a long range": (("hidden_layer_sizes",), {"range": [0, 10**12, 1]}),
    "no parameter": (("ridge",), {"code": ["x", "path", True]}),
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_files_made_by_hand_ask_for_nothing(kind, files, tmp_path):
    cls, data, _ = files["regressor"]
    content = json_of(data)
    path, value = BY_HAND[kind]
    set_in(content["state"], path, value)
    (tmp_path / "model").write_bytes(forged(data, content))
    with pytest.raises(ModelFileError, match="cannot be opened"):
        cls.load(tmp_path / "model")


ONE_MORE_AXIS = object()
# By kind of model: where a value stands, and one that fits nowhere.
MISFITS = {
    "regressor": [
        ((*MODEL, "final_ridge"), "x"),
        ((*KNOWN_ROWS, "n_known"), None),
        ((*KNOWN_ROWS, "columns"), 0),
        ((*MODEL, "scores"), {"tuple": [1, 2, 3, 4]}),
        ((*MODEL, "noise"), False),
        (("_packed", "training", "history"), [{"dict": [["valid_loss", None]]}]),
        ((*MODEL, "parameters", "tol"), 0.0),
        ((*KNOWN_ROWS, "rows_seen"), ONE_MORE_AXIS),
        ((*MODEL, "influences"), ONE_MORE_AXIS),
        ((*MODEL, "module", "last_layer.members.1.moments_gram"), ONE_MORE_AXIS),
        ((*MODEL, "module", "last_layer.members.1.feature_power"), ONE_MORE_AXIS),
    ],
    "classifier": [
        ((*MODEL, "probabilities"), {"tuple": ["x", 0.01]}),
        (("multilabel_",), None),
    ],
    "instruments": [
        (("n_threads",), "x"),
        ((*MODEL, "models", "shrinkage"), []),
        ((*MODEL, "diagnostics"), {"dict": [["effective_f", 1.0]]}),
        ((*MODEL, "plan", "scales"), {"dict": []}),
    ],
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_only_a_later_call_would_stumble_over_is_refused(name, files, tmp_path):
    cls, data, _ = files[name]
    for path, value in MISFITS[name]:
        content, arrays = json_of(data), {}
        if value is ONE_MORE_AXIS:
            member = found_in(content["state"], path)["array"] + ".npy"
            arrays[member] = npy(np.load(io.BytesIO(members(data)[member]))[None])
        else:
            set_in(content["state"], path, value)
        (tmp_path / "model").write_bytes(forged(data, content, arrays))
        with pytest.raises(ModelFileError, match="cannot be opened"):
            cls.load(tmp_path / "model")


@pytest.mark.parametrize("name", ["adam", "adamw", "adagrad", "nadam", "rmsprop", "sgd"])
def test_every_optimizer_goes_on_from_a_file(name, tmp_path):
    path = tmp_path / "model"
    model = small_regressor(optimizer=name).partial_fit(X, Y)
    model.save(path)
    data, loaded = path.read_bytes(), CFLLRegressor.load(path)
    for each in (model, loaded):
        each.partial_fit(X, Y)
    # Not to the last bit: torch casts a state in float32 to float64 when it loads it.
    np.testing.assert_allclose(loaded.predict(X), model.predict(X), rtol=1e-6)
    content = json_of(data)
    optimizer = found_in(content["state"], ("_packed", "training", "optimizer"))
    if optimizer is not None:
        (group,) = found_in(optimizer, ("param_groups",))
        set_in(group, ("differentiable",), None)
        path.write_bytes(forged(data, content))
        with pytest.raises(ModelFileError, match="optimizer: `differentiable` cannot be None"):
            CFLLRegressor.load(path)


def test_lists_within_lists_are_bounded(files, tmp_path):
    cls, data, _ = files["regressor"]
    for depth in (100, 100_000):
        text = json.dumps(json_of(data)).encode()
        nested = text.replace(b'"ridge": "auto"', b'"ridge": ' + b"[" * depth + b"]" * depth)
        assert nested != text
        parts = {**members(data), "content.npy": npy(np.frombuffer(nested, np.uint8))}
        digest = hashlib.sha256(parts["content.npy"]).digest()
        parts["digest.npy"] = npy(np.frombuffer(digest, np.uint8))
        (tmp_path / "model").write_bytes(zipped(parts.items()))
        with pytest.raises(ModelFileError, match="cannot be opened"):
            cls.load(tmp_path / "model")


def test_an_array_is_not_larger_than_its_bytes(files, tmp_path):
    cls, data, _ = files["regressor"]
    raw = npy(np.zeros(2)).replace(b"(2,),", b"(2000000000000,),")
    changed = forged(data, json_of(data), {"array_0.npy": raw})
    (tmp_path / "model").write_bytes(changed)
    with pytest.raises(ModelFileError, match="array_0"):
        cls.load(tmp_path / "model")


def test_compressed_members_are_not_unpacked(files, tmp_path):
    cls, data, _ = files["regressor"]
    parts = {**members(data), "array_0.npy": npy(np.zeros(10**7))}
    (tmp_path / "model").write_bytes(zipped(parts.items(), zipfile.ZIP_DEFLATED))
    with pytest.raises(ModelFileError, match="compressed"):
        cls.load(tmp_path / "model")


def test_one_changed_byte_is_named(files, tmp_path):
    cls, data, _ = files["regressor"]
    parts = members(data)
    for name, raw in parts.items():
        if name == "digest.npy":
            continue
        changed = bytearray(raw)
        changed[-2] ^= 1
        (tmp_path / "model").write_bytes(zipped({**parts, name: bytes(changed)}.items()))
        with pytest.raises(ModelFileError, match=rf"{name.removesuffix('.npy')}: .*SHA-256"):
            cls.load(tmp_path / "model")


def test_a_file_starts_no_compiler(files, tmp_path, monkeypatch):
    cls, data, before = files["regressor"]
    content = json_of(data)
    set_in(content["state"], ("compile",), True)
    set_in(content["state"], ("_packed", "training", "compile"), True)
    (tmp_path / "model").write_bytes(forged(data, content))
    monkeypatch.setattr(nn.Module, "compile", lambda *args, **kwargs: pytest.fail("compiled"))
    model = cls.load(tmp_path / "model")
    assert outputs(model) == before


def test_errors_that_are_not_the_files_stay_os_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        CFLLRegressor.load(tmp_path / "nowhere")
    with pytest.raises(IsADirectoryError):
        CFLLRegressor.load(tmp_path)
    assert issubclass(ModelFileError, ValueError)
    assert sklearn_cfll.persistence.ModelFileError is ModelFileError


def test_a_backbone_that_does_not_fit_the_file_is_refused(tmp_path):
    model = small_regressor(backbone=nn.Sequential(nn.Linear(3, 5), nn.Tanh()), n_members=4)
    with pytest.warns(UserWarning, match="Pass these arguments .*`backbone`"):
        model.fit(X, Y).save(tmp_path / "model")
    for other in (nn.Linear(3, 6), nn.Sequential(nn.Linear(4, 5), nn.Tanh()), MLPBackbone((5, 5))):
        with pytest.raises(ModelFileError, match="differs from the one at fit|the recipe requires"):
            CFLLRegressor.load(tmp_path / "model", backbone=other)


def test_what_is_wrong_with_a_backbone_given_to_load_is_said(tmp_path):
    class Network(nn.Sequential):
        def __init__(self, width):
            super().__init__(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))

    path, network = tmp_path / "model", Network(5)
    model = small_regressor(backbone=network).fit(X, Y)
    with pytest.warns(UserWarning, match="Pass these arguments .*`backbone`"):
        model.save(path)
    for other, message in (
        (Network, r"the class Network.*Pass an instance, Network\(\.\.\.\)"),
        (Network(6), r"differs from the one at fit.*0\.weight.*\[5, 3\].*\[6, 3\].*the same sizes"),
        (nn.Linear(3, 5), "a Linear, has no linear layer '2', which was the last"),
        (nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Tanh()), "no linear layer '2'"),
        (torch.relu, "relu.*function of tensors"),
        ("network", "`backbone` must be None, a torch.nn.Module"),
    ):
        with pytest.raises(ModelFileError, match=f"(?s){message}"):
            CFLLRegressor.load(path, backbone=other)
    for device in (None, 3.5, "abacus"):
        with pytest.raises(ValueError, match=rf"`device`='?{device}'? is neither .* nor a torch"):
            CFLLRegressor.load(path, backbone=network, device=device)
    loaded = CFLLRegressor.load(path, backbone=network, device="auto")
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
