"""What a CFLLNet knows before there are data, and the options that it refuses."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from skorch.callbacks import Freezer, LRScheduler
from skorch.dataset import ValidSplit
from torch import nn

from sklearn_cfll import CFLLNet, CFLLRegressor, EnsembleLastLayer
from small_nets import WIDTH, D, K, N, Tanh, assert_equal_states, make_data, make_net, orders

# -- initialising before there are data -------------------------------------------------------

HEADS = {
    "one": {},
    "ensemble": {"last_layer": EnsembleLastLayer, "last_layer__n_members": 4},
    "statistics": {"last_layer__memory": "statistics"},
    "no intercept": {"last_layer__fit_intercept": False},
}
heads = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)


@orders
@heads
def test_net_initialised_before_data_trains_as_one_that_knows_its_sizes(order, head):
    X, y = make_data()
    sizes = {"last_layer__in_features": WIDTH, "last_layer__out_features": K}
    known = make_net(update_order=order, **head, **sizes).fit(X, y)
    unknown = make_net(update_order=order, **head).initialize()
    assert_equal_states(unknown.partial_fit(X, y), known)
    np.testing.assert_array_equal(unknown.predict(X), known.predict(X))


@heads
def test_net_without_sizes_is_copied_pickled_printed_and_predicts(head):
    X, y = make_data()
    net = make_net(**head).initialize()
    assert "in_features=None, out_features=None" in repr(net)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), clone(net).initialize()):
        assert copied.predict(X).shape == (N, 1) and not copied.predict(X).any()
        assert_equal_states(copied.partial_fit(X, y), net.partial_fit(X, y))
        net = make_net(**head).initialize()


@heads
@pytest.mark.parametrize("use_safetensors", [False, True])
def test_sizes_come_with_loaded_parameters(head, use_safetensors, tmp_path):
    if use_safetensors:
        pytest.importorskip("safetensors")
    X, y = make_data()
    net = make_net(**head).fit(X, y)
    file = {"f_params": tmp_path / "params", "use_safetensors": use_safetensors}
    net.save_params(**file)
    loaded = make_net(**head).initialize()
    loaded.load_params(**file)
    np.testing.assert_array_equal(loaded.predict(X), net.predict(X))
    empty = make_net(**head).initialize()
    empty.save_params(**file)
    make_net(**head).initialize().load_params(**file)


def test_another_module_after_fit_gives_a_net_that_can_be_fitted_on():
    X, y = make_data()
    net = make_net(max_epochs=1).fit(X, y).set_params(module__width=5)
    net.partial_fit(X, y[:, :1])
    assert net.module_.last_layer.weight.shape == (1, 5)
    net.set_params(last_layer__ridge=3.0)
    assert net.module_.last_layer.ridge == 3.0
    net.set_params(last_layer=EnsembleLastLayer, last_layer__n_members=5).partial_fit(X, y)
    assert net.module_.last_layer.n_members == 5 and net.predict(X).shape == y.shape


# -- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("bathc_size", r"unexpected argument\(s\) bathc_size"),
        ("optimizer_momentum", "did you mean optimizer__momentum"),
        ("last_layer_ridge", "did you mean last_layer__ridge"),
        ("iterator_train_shuffle", "did you mean iterator_train__shuffle"),
    ],
)
def test_misspelt_arguments_are_named_before_there_are_data(option, message):
    with pytest.raises(ValueError, match=message):
        make_net(**{option: 1}).initialize()


class Huber(nn.HuberLoss):
    pass


def quantile_loss():
    return nn.functional.l1_loss


@pytest.mark.parametrize(
    "criterion",
    [nn.L1Loss, nn.CrossEntropyLoss(), Huber, quantile_loss],
    ids=["L1", "entropy", "Huber", "quantile"],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_loss_without_closed_form_is_refused_by_name(criterion, method):
    net = make_net(criterion=criterion)
    name = getattr(criterion, "__name__", type(criterion).__name__)
    with pytest.raises(ValueError, match=f"got {name}: the last layer .* only for squared error"):
        getattr(net, method)(*make_data())


def test_refused_loss_leaves_a_fitted_net_as_it_was():
    X, y = make_data()
    net = make_net().fit(X, y)
    expected = net.predict(X)
    net.criterion = nn.L1Loss
    with pytest.raises(ValueError, match="`criterion` must be .*MSELoss.*got L1Loss"):
        net.fit(X, y)
    np.testing.assert_array_equal(net.predict(X), expected)


class Scaled(nn.MSELoss):
    def forward(self, y_pred, y_true):
        return 3.0 * super().forward(y_pred, y_true)


def test_subclass_of_squared_error_is_the_loss():
    X, y = make_data()
    options = {"optimizer": torch.optim.SGD, "train_split": ValidSplit(3)}
    plain = make_net(lr=0.3, **options).fit(X, y)
    scaled = make_net(lr=0.1, criterion=Scaled, **options).fit(X, y)
    for name in ("train_loss", "valid_loss"):
        expected = 3.0 * np.array(plain.history[:, name])
        np.testing.assert_allclose(scaled.history[:, name], expected, rtol=1e-4)


@pytest.mark.parametrize("head", [HEADS["one"], HEADS["ensemble"]])
def test_penalty_that_a_subclass_adds_to_the_loss_reaches_the_backbone(head):
    class Penalised(CFLLNet):
        def get_loss(self, y_pred, y_true, X=None, training=False):
            assert len(X) == len(y_pred)
            loss = super().get_loss(y_pred, y_true, X=X, training=training)
            return loss + 100.0 * self.module_.fc.weight.square().sum()

    X, y = make_data()
    options = {"max_epochs": 20, "verbose": 0, "random_state": 0, **head}
    norms = [
        kind(Tanh, **options).fit(X, y).module_.fc.weight.norm().item()
        for kind in (Penalised, CFLLNet)
    ]
    assert norms[0] < 0.5 * norms[1]


class WithPenalty(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(D, WIDTH)

    def forward(self, X):
        features = torch.tanh(self.fc(X))
        return features, features.square().mean(1)


@orders
def test_outputs_behind_the_features_reach_the_loss_and_forward(order):
    class Net(CFLLNet):
        def get_loss(self, y_pred, y_true, X=None, training=False):
            prediction, penalty = y_pred
            return super().get_loss(prediction, y_true) + 100.0 * penalty.mean()

    X, y = make_data()
    net = Net(WithPenalty, max_epochs=30, verbose=0, random_state=0, update_order=order)
    net.set_params(train_split=ValidSplit(3)).fit(X, y)
    prediction, penalty = net.forward(X)
    assert prediction.shape == (N, K) and penalty.shape == (N,)
    assert net.predict(X).shape == (N, K)
    plain = make_net(WithPenalty, max_epochs=30).fit(X, y)
    assert penalty.mean() < 0.5 * plain.forward(X)[1].mean()


def test_modules_that_give_no_tensor_are_named():
    class Lists(Tanh):
        def forward(self, X):
            return {"features": super().forward(X)}

    with pytest.raises(TypeError, match="must return a tensor of features.*returned dict"):
        make_net(Lists).fit(*make_data())


def test_infer_cannot_be_overridden():
    class Net(CFLLNet):
        def infer(self, x, **fit_params):
            return super().infer(2 * x, **fit_params)

    with pytest.raises(TypeError, match="overrides `infer`.*`forward` of the module"):
        Net(Tanh, verbose=0).fit(*make_data())


@pytest.mark.parametrize(
    "callback", [LRScheduler("StepLR", step_size=1), ("rate", LRScheduler), LRScheduler]
)
def test_two_schedules_of_the_rate_are_refused(callback):
    X, y = make_data()
    net = make_net(lr_schedule="cosine", callbacks=[callback])
    with pytest.raises(ValueError, match='`lr_schedule`="?\'?cosine.*LRScheduler.*"constant"'):
        net.fit(X, y)


def test_estimators_refuse_two_schedules_of_the_rate():
    X, y = make_data()
    model = CFLLRegressor(callbacks=[LRScheduler("StepLR", step_size=1)], max_epochs=2)
    with pytest.raises(ValueError, match="`learning_rate_schedule`"):
        model.set_params(learning_rate_schedule="cosine").fit(X, y)
    model.set_params(learning_rate_schedule="constant").fit(X, y)


def test_patterns_name_parameters_as_the_users_module_does():
    X, y = make_data()
    nets = [
        make_net(optimizer__param_groups=[(pattern, {"lr": 0.0})]).fit(X, y)
        for pattern in ("fc.weight", "backbone.fc.weight", "*.weight")
    ]
    for net in nets:
        assert [group["lr"] for group in net.optimizer_.param_groups] == [0.0, net.lr]
    assert nets[0].module_.fc is nets[0].module_.backbone.fc
    assert not hasattr(nets[0].module_, "nothing_of_that_name")


def test_frozen_parameters_do_not_move():
    X, y = make_data()
    module = Tanh()
    before = module.fc.weight.detach().clone()
    net = make_net(module, callbacks=[Freezer("*fc.weight")]).fit(X, y)
    assert torch.equal(net.module_.fc.weight, before)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    net.fit(X, y)  # nothing is left to train but the last layer
    assert net.optimizer_ is None and np.isfinite(net.predict(X)).all()
