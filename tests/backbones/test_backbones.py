"""Backbones: what a user may bring, splitting off a last layer and putting one back."""

import copy
import functools
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, clone
from torch import nn

from sklearn_cfll.backbones.joining import join_last_layer
from sklearn_cfll.backbones.mlp import ACTIVATIONS, MLPBackbone
from sklearn_cfll.backbones.recipe import build_backbone, cast_module, rebuild_backbone
from sklearn_cfll.backbones.splitting import split_last_layer
from sklearn_cfll.columns.scaling import LIMIT, RobustStandardize, Standardize


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def state_of(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


class Custom(nn.Module):
    """A network with its last layer at ``self.head.fc``; ``end`` acts on its output."""

    def __init__(self, n_outputs=2, end=None, width=6):
        super().__init__()
        self.body = nn.Linear(4, width)
        self.head = nn.ModuleDict({"fc": nn.Linear(width, n_outputs)})
        self.end = end

    def forward(self, inputs):
        output = self.head["fc"](torch.tanh(self.body(inputs)))
        return output if self.end is None else self.end(output)


class Recurring(nn.Module):
    """One linear layer called twice: it is not a last layer only."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, inputs):
        return self.fc(torch.tanh(self.fc(inputs)))


class AsksItsLastLayer(nn.Module):
    """Reads a property of its last layer in ``forward``, as networks often do."""

    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, inputs):
        return self.fc(torch.tanh(self.body(inputs)).reshape(-1, self.fc.in_features))


def bottleneck_conv(dimension, n_outputs=2, bias=True, **options):
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dimension]
    return nn.Sequential(
        convolution(3, 5, 3, padding=1),
        nn.Tanh(),
        convolution(5, n_outputs, 1, bias=bias, **options),
    )


def mlp(*end, n_outputs=2, width=6, bias=True):
    return nn.Sequential(
        nn.Linear(4, width), nn.Tanh(), nn.Linear(width, n_outputs, bias=bias), *end
    )


# name: (network, shape of a sample, name of the last layer, shape of a sample's features)
SPLIT = {
    "sequential": (mlp, (4,), "2", (6,)),
    "without_bias": (lambda: mlp(bias=False), (4,), "2", (6,)),
    "single_output": (lambda: mlp(n_outputs=1), (4,), "2", (6,)),
    "positions": (mlp, (7, 4), "2", (7, 6)),
    "nested": (lambda: nn.Sequential(nn.Flatten(), mlp()), (2, 2), "1.2", (6,)),
    "attribute": (Custom, (4,), "head.fc", (6,)),
    "identity_after": (lambda: mlp(nn.Identity()), (4,), "2", (6,)),
    "dropout_after": (lambda: mlp(nn.Dropout(0.5)), (4,), "2", (6,)),
    "squeezed": (lambda: Custom(1, lambda y: y.squeeze(-1)), (4,), "head.fc", (6,)),
    "conv1d": (lambda: bottleneck_conv(1), (3, 8), "2", (8, 5)),
    "conv2d": (lambda: bottleneck_conv(2), (3, 8, 6), "2", (8, 6, 5)),
    "conv3d": (lambda: bottleneck_conv(3), (3, 4, 3, 2), "2", (4, 3, 2, 5)),
    "conv2d_without_bias": (lambda: bottleneck_conv(2, bias=False), (3, 8, 6), "2", (8, 6, 5)),
    "conv2d_squeezed": (
        lambda: nn.Sequential(bottleneck_conv(2, 1), nn.Flatten(1, 1)),
        (3, 8, 6),
        "0.2",
        (8, 6, 5),
    ),
    "nothing_else": (lambda: nn.Linear(4, 2), (4,), "", (4,)),
    "only_a_conv": (lambda: nn.Conv2d(3, 2, 1), (3, 8, 6), "", (8, 6, 3)),
}
WHOLE = {
    "activation": (lambda: mlp(nn.Tanh()), (4,), (2,)),
    "activation_in_place": (lambda: mlp(nn.ReLU(inplace=True)), (4,), (2,)),
    "arithmetic_in_place": (lambda: Custom(2, lambda y: y.mul_(2.0)), (4,), (2,)),
    "scaled": (lambda: Custom(2, lambda y: 2.0 * y), (4,), (2,)),
    "first_output_only": (lambda: Custom(2, lambda y: y[:, :1]), (4,), (1,)),
    "transposed": (lambda: Custom(2, lambda y: y.transpose(1, 2)), (6, 4), (2, 6)),
    "flattened": (lambda: nn.Sequential(bottleneck_conv(2), nn.Flatten()), (3, 4, 4), (32,)),
    "pooled": (
        lambda: nn.Sequential(bottleneck_conv(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        (3, 4, 4),
        (2,),
    ),
    "used_twice": (Recurring, (4,), (4,)),
    "without_any": (lambda: nn.Sequential(nn.Flatten(), nn.Tanh()), (2, 3), (6,)),
    "asks_its_last_layer": (AsksItsLastLayer, (4,), (2,)),
    "grouped_conv": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)),
        (4, 5, 5),
        (4, 5, 5),
    ),
    "strided_conv": (lambda: bottleneck_conv(2, stride=2), (3, 4, 4), (2, 2, 2)),
    "wide_conv": (lambda: nn.Sequential(nn.Conv1d(3, 2, 3)), (3, 9), (2, 7)),
}


# -- splitting ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SPLIT)
def test_last_linear_layer_is_split_off(case):
    make, sample_shape, name, feature_shape = SPLIT[case]
    sample = draw(5, *sample_shape)
    network = make()
    n_parameters = len(list(network.parameters()))
    has_bias = network.get_submodule(name).bias is not None
    backbone = split_last_layer(network, sample)
    assert (backbone.removed, backbone.feature_shape) == (name, feature_shape)
    assert backbone.module.eval()(sample).shape == (5, *feature_shape)
    assert len(list(backbone.module.parameters())) == n_parameters - 1 - has_bias


@pytest.mark.parametrize("case", SPLIT)
def test_original_weights_joined_again_predict_as_the_original(case):
    make, sample_shape, name, feature_shape = SPLIT[case]
    sample, fresh = draw(5, *sample_shape), draw(4, *sample_shape, seed=1)
    network = make().eval()
    expected = network(fresh)
    last = copy.deepcopy(network.get_submodule(name))
    backbone = split_last_layer(network, sample)
    linear = nn.Linear(feature_shape[-1], len(last.weight), bias=last.bias is not None)
    with torch.no_grad():
        linear.weight.copy_(last.weight.flatten(1))
        if last.bias is not None:
            linear.bias.copy_(last.bias)
    kept = state_of(backbone.module)
    whole = join_last_layer(backbone, linear).eval()
    torch.testing.assert_close(whole(fresh), expected)
    # Features times weights are the predictions, channels last.
    flat = linear(backbone.module.eval()(fresh))
    channels_last = expected.movedim(1, -1) if backbone.channels_first else expected
    torch.testing.assert_close(flat.reshape(channels_last.shape), channels_last)
    # The joined network is a copy: the backbone is as it was.
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.zero_()
    for key, value in backbone.module.state_dict().items():
        assert torch.equal(value, kept[key])


@pytest.mark.parametrize("case", WHOLE)
def test_network_that_ends_otherwise_is_left_whole(case):
    make, sample_shape, feature_shape = WHOLE[case]
    sample = draw(5, *sample_shape)
    network = make().eval()
    expected = network(sample.clone())
    backbone = split_last_layer(network, sample)
    assert backbone.removed is None and not backbone.channels_first
    assert backbone.module is network and backbone.feature_shape == feature_shape
    assert torch.equal(backbone.module(sample), expected)
    linear = nn.Linear(feature_shape[-1], 3)
    torch.testing.assert_close(join_last_layer(backbone, linear)(sample), linear(expected))


@pytest.mark.parametrize("training", [True, False])
def test_splitting_keeps_training_flags_statistics_and_hooks(training):
    network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2))
    network.train(training)
    network[1].eval()  # a frozen batch norm must stay frozen
    before = state_of(network[1])
    module = split_last_layer(network, draw(5, 4)).module
    assert [part.training for part in module][:3] == [training, False, training]
    for key, value in module[1].state_dict().items():
        assert torch.equal(value, before[key])
    assert not any(part._forward_hooks for part in module.modules())


class Returns(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, inputs):
        return self.make(inputs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: x.long(), "floating-point tensor.*dtype torch.int64"),
        (lambda x: x > 0, "floating-point tensor.*dtype torch.bool"),
        (lambda x: x.to(torch.complex64), "floating-point tensor.*dtype torch.complex64"),
        (lambda x: (x, x), "floating-point tensor.*tuple"),
        (lambda x: {"features": x}, "floating-point tensor.*dict"),
        (lambda x: x[:-1], r"row per sample: 5 samples gave shape \(4, 4\)"),
        (lambda x: x.sum(), r"row per sample: 5 samples gave shape \(\)"),
        (lambda x: x.sum(1), r"at least one column.*\(5,\)"),
        (nn.Linear(3, 2), r"cannot take samples of shape \(4,\) and dtype torch.float32"),
    ],
)
def test_output_that_cannot_serve_as_features_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        split_last_layer(Returns(make), draw(5, 4))


# -- building ----------------------------------------------------------------------------------


class Recipe(BaseEstimator):
    def __init__(self, width=6):
        self.width = width

    def build(self, input_shape):
        return nn.Sequential(nn.Linear(input_shape[0], self.width), nn.Tanh())


class TakesShape(nn.Module):
    def __init__(self, input_shape, width=6):
        super().__init__()
        self.fc = nn.Linear(input_shape[0], width)

    def forward(self, inputs):
        return torch.tanh(self.fc(inputs))


def function(input_shape, width=6):
    return Recipe(width).build(input_shape)


@pytest.mark.parametrize(
    ("backbone", "width"),
    [
        (Recipe(), 6),
        (Recipe(width=9), 9),
        (function, 6),
        (functools.partial(function, width=9), 9),
        (TakesShape, 6),
        (functools.partial(TakesShape, width=9), 9),
        (nn.Sequential(nn.Linear(4, 6), nn.Tanh()), 6),
        (mlp(), 6),
    ],
    ids=["recipe", "recipe_9", "function", "partial", "class", "of_class", "module", "whole"],
)
def test_all_kinds_of_backbone_are_built_in_the_dtype_of_the_data(backbone, width):
    sample = draw(3, 4).double()
    built = build_backbone(backbone, sample)
    assert built.feature_shape == (width,)
    assert built.module(sample).dtype == torch.float64
    rebuilt = rebuild_backbone(backbone, sample, torch.float64, built)
    rebuilt.module.load_state_dict(built.module.state_dict())
    assert torch.equal(rebuilt.module(sample), built.module(sample))


def test_module_is_copied_and_the_original_untouched():
    network = mlp()
    before = state_of(network)
    built = build_backbone(network, draw(3, 4).double())
    with torch.no_grad():
        for parameter in built.module.parameters():
            parameter.add_(1.0)
    assert isinstance(network[2], nn.Linear) and network[0].weight.dtype == torch.float32
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("kind", ["convolution", "lazy"])
def test_rebuilding_strips_what_was_split_off(kind):
    network, sample = {
        "convolution": (bottleneck_conv(2), draw(3, 3, 4, 4)),
        "lazy": (nn.Sequential(nn.LazyLinear(6), nn.Tanh(), nn.LazyLinear(2)), draw(3, 4)),
    }[kind]
    pristine = copy.deepcopy(network)
    built = build_backbone(network, sample)
    assert built.removed == "2"
    rebuilt = rebuild_backbone(pristine, sample, torch.float32, built)
    rebuilt.module.load_state_dict(built.module.state_dict())
    torch.testing.assert_close(rebuilt.module(sample), built.module(sample))


@pytest.mark.parametrize(
    ("backbone", "error", "message"),
    [
        (3, TypeError, "`backbone` must be None, a torch.nn.Module, a recipe.* got 3"),
        ("resnet18", TypeError, "`backbone` must be None.*'resnet18'"),
        (lambda shape: np.ones(shape), TypeError, "must build a torch.nn.Module.*ndarray"),
        (MLPBackbone, TypeError, "must build a torch.nn.Module.*MLPBackbone"),
        (nn.Linear(3, 2), ValueError, r"cannot take samples of shape \(4,\)"),
    ],
)
def test_what_is_no_backbone_is_named(backbone, error, message):
    with pytest.raises(error, match=message):
        build_backbone(backbone, draw(3, 4))


def test_casting_keeps_complex_weights_complex_and_integers_integer():
    module = nn.BatchNorm1d(3)
    module.spectrum = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    cast_module(module, torch.device("cpu"), torch.float64)
    assert module.weight.dtype == torch.float64
    assert module.spectrum.dtype == torch.complex128
    assert module.num_batches_tracked.dtype == torch.int64


# -- the multilayer perceptron -----------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", [(8,), (16, 8), [5, 4, 8]], ids=str)
def test_mlp_gives_as_many_features_as_its_last_size(activation, sizes):
    recipe = MLPBackbone(sizes, activation)
    module = clone(recipe).build((3,))
    widths = [part.out_features for part in module if isinstance(part, nn.Linear)]
    assert widths == list(sizes)
    assert module(draw(5, 3)).shape == (5, 8)
    # A backbone already: nothing to split off it, unless its activation is the identity.
    assert activation == "identity" or split_last_layer(module, draw(5, 3)).removed is None


def test_mlp_drops_hidden_units_but_never_features():
    module = MLPBackbone((6, 7, 8), dropout=0.25).build((3,))
    assert [part.p for part in module if isinstance(part, nn.Dropout)] == [0.25, 0.25]
    assert isinstance(module[-1], nn.ReLU)
    assert not any(isinstance(part, nn.Dropout) for part in MLPBackbone().build((3,)))


def test_mlp_starts_from_torchs_generator():
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(MLPBackbone((4,)).build((3,))[0].weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("sizes", [(), (8, 0), (-1,), (2.5,)], ids=str)
def test_mlp_names_wrong_sizes(sizes):
    with pytest.raises(ValueError, match="`hidden_layer_sizes` must hold at least one positive"):
        MLPBackbone(sizes).build((3,))


@pytest.mark.parametrize("shape", [(3, 8, 8), (4, 2), ()], ids=str)
def test_mlp_takes_rows_of_columns_only(shape):
    with pytest.raises(ValueError, match="An MLP needs samples of shape.*`backbone`"):
        MLPBackbone().build(shape)


def test_dropout_that_has_no_effect_is_said():
    with pytest.warns(UserWarning, match=r"`dropout`=0.2 has no effect.*second one"):
        MLPBackbone((8,), dropout=0.2).build((3,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MLPBackbone((8, 8), dropout=0.2).build((3,))
        MLPBackbone((8,)).build((3,))


# -- standardising -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_standardised_columns_have_zero_mean_and_unit_deviation(dtype):
    inputs = 50.0 + 7.0 * draw(200, 3).double()
    layer = Standardize(3).to(dtype)
    layer.adapt_to(inputs.mean(0), inputs.std(0, correction=0))
    outputs = layer(inputs.to(dtype))
    assert outputs.dtype == layer.mean.dtype == layer.scale.dtype == dtype
    assert outputs.mean(0).abs().max() < 1e-4
    torch.testing.assert_close(
        outputs.std(0, correction=0), torch.ones(3, dtype=dtype), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e6, -0.1])
def test_constant_columns_are_only_centred(dtype, value):
    inputs = torch.full((50, 1), value, dtype=torch.float64)
    # What summing in the layer's dtype leaves of a constant column: rounding, no deviation.
    rounding = 2 * torch.finfo(dtype).eps * abs(value)
    layer = Standardize(1).to(dtype)
    layer.adapt_to(inputs.mean(0), inputs.std(0, correction=0) + rounding)
    assert layer.scale.item() == 1.0
    changed = layer(torch.tensor([[value + 3.0]], dtype=dtype))
    assert abs(changed.item() - 3.0) < 1e-5 * (1 + abs(value))


def test_a_small_but_real_deviation_is_scaled():
    layer = Standardize(1).double()
    layer.adapt_to(*torch.tensor([[1.0], [1e-6]], dtype=torch.float64))
    assert abs(layer(torch.tensor([[1.0 + 2e-6]], dtype=torch.float64)).item() - 2.0) < 1e-6


def test_extreme_entries_are_soft_clipped_and_others_unchanged():
    layers = Standardize(1).double(), RobustStandardize(1).double()
    for layer in layers:
        layer.adapt_to(*torch.tensor([[3.0], [2.0]], dtype=torch.float64))
    near = 3.0 + 2.0 * LIMIT * torch.linspace(-1, 1, 101, dtype=torch.float64)[:, None]
    torch.testing.assert_close(layers[1](near), layers[0](near), rtol=1e-15, atol=0)
    far = torch.logspace(2, 300, 50, dtype=torch.float64)[:, None].requires_grad_()
    outputs = layers[1](far)
    assert (outputs.diff(dim=0) >= 0).all() and outputs.min() > LIMIT
    assert outputs.max() <= 2 * LIMIT
    outputs.sum().backward()
    assert far.grad.isfinite().all()
    torch.testing.assert_close(layers[1](6.0 - far), -outputs)  # mirrored at the mean


def test_statistics_travel_with_the_state():
    layers = Standardize(2), Standardize(2)
    layers[0].adapt_to(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    layers[1].load_state_dict(layers[0].state_dict())
    inputs = draw(5, 2)
    assert torch.equal(layers[0](inputs), layers[1](inputs))
    assert not list(layers[0].parameters())
