"""What is no backbone is named, with what to give instead; the user's own objects stay clean."""

import functools
import threading
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sklearn_cfll import CFLLClassifier, CFLLRegressor
from sklearn_cfll.backbones import FNOBackbone, MLPBackbone
from sklearn_cfll.backbones.recipe import build_backbone

rng = np.random.default_rng(0)
X = rng.normal(size=(200, 6))
Y = X[:, 0] + 0.5 * X[:, 1]
CLASSES = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.5)


def fit(backbone, y=Y, **parameters):
    Estimator = CFLLRegressor if y.dtype.kind == "f" else CFLLClassifier
    return Estimator(backbone, max_epochs=2, random_state=0, **parameters).fit(X, y)


# -- classes, and callables that do not take a shape -------------------------------------------


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, inputs):
        return torch.tanh(self.fc(inputs))


class Width(Fixed):
    def __init__(self, width=4):
        super().__init__()
        self.fc = nn.Linear(6, width)


class OfShape(Fixed):
    def __init__(self, input_shape, width=4):
        super().__init__()
        self.fc = nn.Linear(input_shape[0], width)


@pytest.mark.parametrize(
    "backbone",
    [
        *(nn.Linear, nn.ReLU, nn.Flatten, nn.Sequential, nn.LazyLinear, nn.Conv2d, nn.Embedding),
        *(Fixed, Width, MLPBackbone, FNOBackbone, int),
    ],
)
def test_a_class_in_place_of_an_instance(backbone):
    name = backbone.__name__
    with pytest.raises((TypeError, ValueError), match=rf"class {name}.*instance, {name}\(\.\.\.\)"):
        fit(backbone)


@pytest.mark.parametrize("backbone", [OfShape, functools.partial(OfShape, width=4)])
def test_a_class_that_takes_the_shape_is_called_with_it(backbone):
    assert fit(backbone).features(X).shape == (200, 4)


@pytest.mark.parametrize("backbone", [lambda: Fixed(), lambda input_shape, width: Fixed()])
def test_a_callable_that_does_not_take_the_shape_alone(backbone):
    with pytest.raises(TypeError, match=r"one argument, the shape.*\(6,\).*functools\.partial"):
        fit(backbone)


def test_an_error_inside_a_callable_is_its_own():
    def build(input_shape):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fit(build)


@pytest.mark.parametrize(
    "function", [torch.relu, F.tanh, Fixed().forward, lambda x: x.relu(), np.tanh, lambda x: x]
)
def test_a_function_of_tensors_is_no_backbone(function):
    with pytest.raises(TypeError, match=r"a sample('s shape)?, \(6,\)"):
        fit(function)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_named_and_a_compiled_network_is_split():
    for make in (torch.jit.script, lambda network: torch.jit.trace(network, torch.zeros(2, 6))):
        scripted = make(Fixed())
        for backbone in (scripted, lambda input_shape, given=scripted: given):
            with pytest.raises(TypeError, match="is a TorchScript module"):
                fit(backbone)
        with pytest.raises(TypeError, match="holds a TorchScript module, '0'"):
            fit(nn.Sequential(scripted, nn.Linear(4, 1)))
    assert fit(torch.compile(ends_in(nn.Identity(), 1))).features(X).shape == (200, 16)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"optimizer": torch.optim.Adam(Fixed().parameters())}, 'instance of Adam.*"adam"'),
        ({"optimizer": torch.optim.ASGD(Fixed().parameters())}, "optimizer=ASGD"),
        ({"optimizer": functools.partial(torch.optim.SGD, momentum=0.9)}, "a name or a class"),
        ({"callbacks": ["early"]}, "skorch callbacks.*'early'"),
        ({"callbacks": [nn.Linear(2, 2)]}, "skorch callbacks"),
    ],
)
def test_optimisers_and_callbacks_of_another_kind(parameters, message):
    with pytest.raises(ValueError, match=message):
        fit(None, **parameters)


# -- what comes after the last linear layer ----------------------------------------------------


class Ends(nn.Module):
    """A network that ends in a function of its last linear layer."""

    def __init__(self, function, n_outputs=3):
        super().__init__()
        self.body, self.out, self.function = nn.Linear(6, 16), nn.Linear(16, n_outputs), function

    def forward(self, inputs):
        return self.function(self.out(input=torch.relu(self.body(inputs))))


def ends_in(module, n_outputs=3):
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, n_outputs), module)


@pytest.mark.parametrize("y", [CLASSES, CLASSES > 1, Y], ids=["three", "two", "numbers"])
@pytest.mark.parametrize(
    ("backbone", "named"),
    [
        (ends_in(nn.LogSoftmax(dim=1)), r"LogSoftmax \('3'\)"),
        (ends_in(nn.Softmax(dim=-1)), r"Softmax \('3'\)"),
        (ends_in(nn.Softmin(dim=-1)), r"Softmin \('3'\)"),
        (ends_in(nn.Softmax(dim=-1), 2), r"Softmax \('3'\)"),
        (Ends(nn.LogSoftmax(dim=1)), r"LogSoftmax \('function'\)"),
        (Ends(lambda out: F.log_softmax(out, 1)), "a log_softmax"),
        (Ends(lambda out: torch.softmax(out, -1)), "a softmax"),
        (Ends(lambda out: (out / 2).softmax(1)), "a softmax"),
        (ends_in(nn.Sigmoid(), 1), r"Sigmoid \('3'\)"),
        (Ends(torch.sigmoid, 1), "a sigmoid"),
        (Ends(lambda out: out.sigmoid_(), 1), "a sigmoid"),
        (Ends(lambda out: out.sigmoid().squeeze(1), 1), "a sigmoid"),
        (Ends(F.logsigmoid, 1), "a logsigmoid"),
    ],
)
def test_probabilities_are_no_features(backbone, named, y):
    with pytest.raises(ValueError, match=rf"ends in {named}.*Remove it"):
        fit(backbone, y)


@pytest.mark.parametrize("last", [nn.Sigmoid(), nn.LogSigmoid(), nn.Hardsigmoid()])
def test_one_sigmoid_for_each_class_is_a_prediction(last):
    with pytest.raises(ValueError, match=rf"ends in {type(last).__name__} \('3'\)"):
        fit(ends_in(last, 3), CLASSES)


@pytest.mark.parametrize("function", [F.softplus, torch.tanh, torch.exp, lambda out: 5 * out])
def test_one_feature_looks_like_a_prediction(function):
    with pytest.warns(UserWarning, match="returns one feature"):
        fit(Ends(function, 1))


@pytest.mark.parametrize(
    ("y", "n_outputs"),
    [(CLASSES, 3), (CLASSES > 1, 2), (np.stack([Y, -Y], 1), 2)],
    ids=["three classes", "two classes", "two targets"],
)
def test_as_many_features_as_outputs_look_like_predictions(y, n_outputs):
    for network in (ends_in(nn.Tanh(), n_outputs), Ends(torch.relu, n_outputs)):
        with pytest.warns(UserWarning, match=rf"returns {n_outputs} features, as many.*wider"):
            fit(network, y)
    if y.dtype == bool:
        with pytest.raises(ValueError, match="ends in Sigmoid"):
            fit(ends_in(nn.Sigmoid(), 2), y)


ORDINARY = {
    "tanh": ends_in(nn.Tanh(), 8),
    "relu": ends_in(nn.ReLU(), 8),
    "sigmoid": ends_in(nn.Sigmoid(), 8),
    "function": Ends(torch.sigmoid, 8),
    "normalised": Ends(lambda out: F.normalize(out.relu(), p=1, dim=1), 32),
    "identity": nn.Identity(),
    "attention": nn.Sequential(
        nn.Unflatten(1, (3, 2)), nn.TransformerEncoderLayer(2, 1, 8, batch_first=True), nn.Flatten()
    ),
    "flattened": nn.Sequential(nn.Unflatten(1, (3, 2)), nn.Linear(2, 4), nn.Flatten()),
    "whole": ends_in(nn.Dropout(0.1), 3),
    "squeezed": Ends(lambda out: out.squeeze(-1), 1),
    "two_tanh": ends_in(nn.Tanh(), 2),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_networks_raise_no_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(ORDINARY[name], CLASSES)
        fit(ORDINARY[name], Y)


def test_shares_as_inputs_raise_no_warning():
    shares = np.abs(X) / np.abs(X).sum(1, keepdims=True)
    CFLLRegressor(nn.Identity(), max_epochs=1).fit(shares, Y)


def test_a_recipes_probabilities_are_features():
    class Recipe:
        def build(self, input_shape):
            return ends_in(nn.Softmax(dim=1), 8)

    np.testing.assert_allclose(fit(Recipe()).features(X).sum(1), 1, rtol=1e-6)


def test_a_last_layer_that_cannot_be_split_off_is_said():
    with pytest.warns(UserWarning, match="'out', could not be split off"):
        fit(Ends(lambda out: out.view(-1, 1), 1))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda out: out.view(-1), r"shape \(2,\).*unsqueeze\(-1\).*without.*view\(-1\)"),
        (lambda out: out[:, 0], r"shape \(2,\).*unsqueeze"),
        (lambda out: out.relu().mean(1), r"shape \(2,\).*unsqueeze"),
        (lambda out: (out, out.T), r"tuple of 2 \(Tensor of shape \(2, 1\), Tensor of shape"),
        (lambda out: [out], r"list of 1 \(Tensor of shape"),
        (lambda out: {"logits": out}, r"dict with the keys \['logits'\]"),
        (lambda out: None, "NoneType"),
    ],
)
def test_an_output_that_is_no_table_of_features(function, message):
    with pytest.raises(ValueError, match=message):
        fit(Ends(function, 1))


# -- parameters of recipes ---------------------------------------------------------------------

NAN = float("nan")
BAD_FNO = {
    "n_modes": [4.5, "4", 0, -1, NAN, True, (4, 0), (4, 2.5), (True, 4), (), None, (4,) * 4, {4}],
    "hidden_channels": [3.5, "8", 0, -3, NAN, True, None],
    "n_layers": [0, 1.5, "x", True, None],
    "lifting_channel_ratio": [0, -1, NAN, "2", True, float("inf"), 0.001],
    "projection_channel_ratio": [0, NAN, "x", True, 0.001, None],
    "channels": ["middle", 1, True],
    "positional_embedding": ["x", 1, False],
    "norm": ["x", "ada_in", nn.BatchNorm2d],
    "domain_padding": [-1, NAN, "x", True, [0.1]],
    "options": [3, {"n_modes": 3}, {"nonsense": 1}, {"in_channels": 2}, [("rank", 1)]],
}
BAD_MLP = {
    "hidden_layer_sizes": [0, -1, 3.5, "64", (), (8, "a"), (8, 2.5), NAN, True, (True, 8), None],
    "activation": ["step", nn.ReLU, nn.ReLU(), None, True],
    "dropout": [-0.1, 1, 1.5, NAN, "x", True, None],
    "n_members": [0, -1, 1.5, "x", True],
}


def cases(bad):
    return [(name, value) for name, values in bad.items() for value in values]


@pytest.mark.parametrize(("name", "value"), cases(BAD_MLP), ids=str)
def test_mlp_names_a_bad_parameter(name, value):
    with pytest.raises(ValueError, match=name):
        MLPBackbone(**{name: value}).build((6,))


@pytest.mark.parametrize(("name", "value"), cases(BAD_FNO), ids=str)
def test_fno_names_a_bad_parameter(name, value):
    pytest.importorskip("neuralop")
    options = {"n_modes": 4, "hidden_channels": 4, "n_layers": 1, name: value}
    with pytest.raises(ValueError, match=name):
        FNOBackbone(**options).build((16, 16))


@pytest.mark.parametrize("sizes", [8, np.int64(8), (8,), [8], np.array([8])], ids=repr)
def test_mlp_takes_sizes_in_any_form(sizes):
    assert MLPBackbone(sizes).build((6,))(torch.zeros(2, 6)).shape == (2, 8)


@pytest.mark.parametrize(
    ("channels", "shape", "n_modes", "fits"),
    [
        (None, (3, 32, 32), 8, r"channels='first' \(3 channels on a grid of \(32, 32\)\)"),
        (None, (32, 32, 3), 8, r"channels='last' \(3 channels on a grid of \(32, 32\)\)"),
        ("first", (32, 32, 3), 8, r"channels='last' \(3 channels"),
        ("last", (3, 32, 32), 8, r"channels='first' \(3 channels"),
        ("first", (32, 32), (8, 8), r"channels=None \(one field on a grid of \(32, 32\)\)"),
        ("last", (24,), 8, r"channels=None \(one field on a grid of \(24,\)\)"),
        (None, (2, 24), (8,), r"channels='first' \(2 channels on a grid of \(24,\)\)"),
        (None, (8, 8, 8, 8), 4, "channels='first'.*and channels='last'.*would both fit"),
    ],
)
def test_wrong_channels_are_named_with_those_that_fit(channels, shape, n_modes, fits):
    pytest.importorskip("neuralop")
    recipe = FNOBackbone(n_modes, hidden_channels=4, n_layers=1, channels=channels)
    with pytest.raises(ValueError, match=rf"With channels={channels!r}.*`channels` states.*{fits}"):
        recipe.build(shape)


def test_wrong_channels_that_only_y_shows():
    pytest.importorskip("neuralop")
    fields = np.zeros((10, 12, 16))
    recipe = FNOBackbone(4, hidden_channels=4, n_layers=1, channels="last")
    with pytest.raises(ValueError, match=r"y must have shape.*\(12, 16\).*`channels`='last'"):
        CFLLRegressor(recipe, max_epochs=1).fit(fields, fields[:, :11])


# -- the user's own objects --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["callable", "recipe"])
def test_a_network_that_is_handed_out_again_stays_as_it_was(kind):
    network = ends_in(nn.Dropout(0.1), 1).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}

    class Keeps:
        def build(self, input_shape):
            return network

    fit(Keeps() if kind == "recipe" else lambda input_shape: network)
    assert not network.training and isinstance(network[2], nn.Linear)
    for name, value in network.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])


def test_a_failed_try_leaves_the_network_as_it_was():
    network = ends_in(nn.Softmax(dim=1)).eval()
    structure = str(network)
    with pytest.raises(ValueError, match="ends in .*Softmax|Softmax.*last"):
        fit(network)
    assert str(network) == structure and not network.training
    assert all(not part._forward_hooks for part in network.modules())


@pytest.mark.parametrize(
    ("network", "calls"), [(ends_in(nn.Tanh()), 1), (Ends(lambda out: out), 2)]
)
def test_hooks_run_once_for_a_backbone_and_twice_for_a_whole_network(network, calls):
    seen = []
    network.register_forward_hook(lambda *args: seen.append(1))
    build_backbone(network, torch.randn(2, 6))
    assert len(seen) == calls


class Locked(Fixed):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class WithHistory(Fixed):
    def __init__(self):
        super().__init__()
        self.doubled = 2 * self.fc.weight


@pytest.mark.parametrize("Network", [Locked, WithHistory])
def test_a_network_that_cannot_be_copied(Network):
    with pytest.raises(TypeError, match=rf"{Network.__name__} cannot be copied.*callable"):
        fit(Network())
    assert fit(lambda input_shape: Network()).features(X).shape == (200, 4)
