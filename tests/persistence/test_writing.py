"""Writing files of models through full disks, interrupts and kills; what they do not hold."""

import errno
import os
import random
import stat
import time
import warnings
import zipfile

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn

from helpers import OwnSGD
from model_files import MODELS, X, Y, outputs, small_regressor
from sklearn_cfll import CFLLRegressor, ModelFileError
from sklearn_cfll.backbones import MLPBackbone

# -- writing ----------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file(files, tmp_path, monkeypatch):
    cls, data, _ = files["regressor"]
    path = tmp_path / "model"
    path.write_bytes(data)
    model = cls.load(path)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    for owner, name in ((os, "fsync"), (zipfile.ZipFile, "writestr"), (os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            with pytest.raises(OSError, match="No space"):
                model.save(path)
            with pytest.raises(OSError, match="No space"):
                model.save(tmp_path / "new")
        assert path.read_bytes() == data
        assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_an_interrupt_leaves_the_old_file(files, tmp_path, monkeypatch):
    cls, data, _ = files["regressor"]
    path = tmp_path / "model"
    path.write_bytes(data)
    model = cls.load(path)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.save(path)
    assert path.read_bytes() == data
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_permissions_and_links_stay(files, tmp_path):
    cls, data, _ = files["regressor"]
    path, link = tmp_path / "model", tmp_path / "link"
    path.write_bytes(data)
    model = cls.load(path)
    path.chmod(0o640)
    link.symlink_to(path)
    model.save(link)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    model.save(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode == plain.stat().st_mode
    with pytest.raises(OSError, match="regular file"):
        model.save(os.devnull)
    with pytest.raises(OSError, match="regular file"):
        model.save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no such folder: '.*nowhere'$"):
        model.save(tmp_path / "nowhere" / "model")


def forked(work):
    """A child process that does this work; its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes")


@needs_fork
def test_two_writers_leave_a_whole_file(files, tmp_path):
    cls, data, before = files["regressor"]
    path = tmp_path / "model"
    path.write_bytes(data)

    def save_often(model):
        for _ in range(40):
            model.save(path)

    models = [cls.load(path).set_params(tol=tol) for tol in (1.0, 2.0)]
    writers = [forked(lambda model=model: save_often(model)) for model in models]
    for _ in range(30):
        assert outputs(cls.load(path)) == before
    for writer in writers:
        assert os.waitpid(writer, 0)[1] == 0
    assert cls.load(path).tol in (1.0, 2.0)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def save_forever(model, path):
    while True:
        model.save(path)


@needs_fork
@pytest.mark.parametrize("n_kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_kills_while_saving_lose_nothing(n_kills, files, tmp_path):
    cls, data, before = files["regressor"]
    path = tmp_path / "model"
    path.write_bytes(data)
    model, draw = cls.load(path), random.Random(0)
    for _ in range(n_kills):
        child = forked(lambda: save_forever(model, path))
        time.sleep(draw.uniform(0.0, 0.1))
        os.kill(child, 9)
        os.waitpid(child, 0)
        assert outputs(cls.load(path)) == before
    assert path.read_bytes() != data  # some of them had written


# -- what a file does not hold ----------------------------------------------------------------


def network(input_shape):
    return nn.Sequential(nn.Linear(input_shape[0], 5), nn.Tanh())


def test_save_says_once_what_load_will_need(tmp_path):
    model = small_regressor(backbone=network, optimizer=OwnSGD, callbacks=[Callback()])
    model.fit(X, Y)
    with pytest.warns(UserWarning, match="plain data only") as caught:
        model.save(tmp_path / "model")
    (warning,) = caught
    assert warning.filename == __file__
    for part in (
        "`backbone` (the function network)",
        "`optimizer` (the class OwnSGD)",
        "`callbacks`",
    ):
        assert part in str(warning.message)
    loaded = CFLLRegressor.load(tmp_path / "model", backbone=network, optimizer=OwnSGD)
    assert loaded.predict(X).tobytes() == model.predict(X).tobytes()
    assert (loaded.backbone, loaded.optimizer, loaded.callbacks) == (network, OwnSGD, None)
    for needed in ("backbone", "optimizer"):
        given = {"backbone": network, "optimizer": OwnSGD}
        given.pop(needed)
        with pytest.raises(ModelFileError, match=f"`{needed}`"):
            CFLLRegressor.load(tmp_path / "model", **given)


@pytest.mark.parametrize("name", MODELS)
def test_ordinary_models_are_saved_without_a_warning(name, files, tmp_path):
    cls, data, _ = files[name]
    (tmp_path / "model").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = cls.load(tmp_path / "model")
        model.save(tmp_path / "other")
        assert outputs(cls.load(tmp_path / "other")) == outputs(model)


PLAIN_VALUES = {
    "device": torch.device("cpu"),
    "hidden_layer_sizes": [range(8, 10), np.array([8, 9]), [np.int64(8)], 8, np.uint8(8)],
    "random_state": [np.int32(3), np.random.RandomState(0), np.uint32(2**32 - 1)],
    "ridge": [np.float32(0.5), np.longdouble(0.5), np.float64(2), np.int8(1)],
    "decay": np.float16(0.5),
    "early_stopping": np.True_,
    "optimizer": [torch.optim.NAdam, "sgd"],
    "batch_size": [np.int64(40), "full"],
    "activation": np.str_("tanh"),
    "backbone": MLPBackbone(np.array([5, 4])),
}


@pytest.mark.parametrize("name", PLAIN_VALUES)
def test_values_of_all_kinds_come_back(name, tmp_path):
    values = PLAIN_VALUES[name]
    for value in values if isinstance(values, list) else [values]:
        model = small_regressor(n_members=1, **({name: value})).fit(X, Y)
        model.save(tmp_path / "model")
        loaded = CFLLRegressor.load(tmp_path / "model")
        assert outputs(loaded) == outputs(model)
        found = getattr(loaded, name)
        if name == "backbone":
            found, value = list(found.hidden_layer_sizes), list(value.hidden_layer_sizes)
        if isinstance(value, np.random.RandomState):
            assert isinstance(found, int)  # the seed that was drawn from it
            assert loaded.fit(X, Y).predict(X).tobytes() == model.predict(X).tobytes()
        else:
            assert np.array_equal(found, value) if np.ndim(value) else found == value


@pytest.mark.parametrize("value", [object(), {1, 2}, lambda: None, 1j, b"bytes", np.dtype("f8")])
def test_what_a_file_cannot_hold_is_refused_by_name(value, tmp_path):
    path = tmp_path / "model"
    model = small_regressor().fit(X, Y)
    model.save(path)
    before = path.read_bytes()
    model.verbose = value
    with pytest.raises(TypeError, match="`verbose` holds"):
        model.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
