"""The summary: tables as text, HTML, LaTeX and a frame; what is missing is said."""

import numpy as np
import pytest

from sklearn_cfll import CFLLIVRegressor
from sklearn_cfll.instruments.effect import report
from sklearn_cfll.instruments.partially_linear import Residuals
from sklearn_cfll.instruments.summary import Summary, Table

QUICK = {"max_epochs": 5, "n_repeats": 1, "n_folds": 2, "random_state": 0}


def effect(strength=0.5, q=1, p=1, clusters=None):
    rng = np.random.default_rng(0)
    Z, hidden = rng.normal(size=(300, q)), rng.normal(size=300)
    X = strength * Z.sum(1)[:, None] + hidden[:, None] + rng.normal(size=(300, p))
    y = X.sum(1) + hidden
    found = report(Residuals.of(y, X, Z, None, clusters))
    names = [f"dose_{j}" for j in range(p)]
    curve = {"curve_estimate": np.ones(p), "curve_std_error": np.ones(p)}
    return {"treatment_names": names, "is_binary": [False] * p} | found | curve


def test_summary_prints_as_text_and_html():
    table = Table("Group", ("value", "other"), [("a & b", "1", "20"), ("longer label", "2", "")])
    text = str(Summary("Title", [table, Table("", (), [("label", "text")])], ["A note."]))
    lines = text.splitlines()
    assert lines[2] == "Group         value  other"
    assert lines[3] == "a & b             1     20"
    assert lines[5] == "-" * len(lines[1]) and lines[6] == "label  text"
    assert lines[-1] == "A note."
    html = Summary("Title", [table])._repr_html_()
    assert "<caption>Title</caption>" in html and "a &amp; b" in html


def test_effects_as_a_frame():
    pd = pytest.importorskip("pandas")
    found = effect()
    frame = Summary("Title", [], effect=found).to_frame()
    assert frame.index.tolist() == ["dose_0"] and isinstance(frame, pd.DataFrame)
    np.testing.assert_allclose(frame["statistic"], found["estimate"] / found["std_error"])
    np.testing.assert_allclose(frame[["lower", "upper"]], found["interval"])
    assert frame.loc["dose_0", "anderson_rubin"] == found["anderson_rubin"][0].tolist()
    assert frame.loc["dose_0", "tf_std_error"] >= frame.loc["dose_0", "std_error"]


def test_latex_escapes_names_and_balances_columns():
    pytest.importorskip("ivmodels")
    text = Summary("Title", [], effect=effect(p=2, q=3)).to_latex()
    lines = text.splitlines()
    assert lines[0] == r"\begin{tabular}{lcc}" and lines[-1] == r"\end{tabular}"
    assert r" & dose\_0 & dose\_1 \\" in lines
    assert all(line.count("&") == 2 for line in lines if line.endswith(r"\\"))
    assert r"95\% set, Anderson-Rubin" in text and "First-stage F" in text


def test_a_fit_without_an_effect_says_so():
    with pytest.raises(ValueError, match="diagnose=True"):
        Summary("Title", []).to_latex()


@pytest.fixture(scope="module")
def sample():
    rng = np.random.default_rng(0)
    Z, hidden = rng.normal(size=(200, 2)), rng.normal(size=200)
    X = 0.5 * Z[:, 0] + hidden
    return X[:, None], X + hidden + rng.normal(size=200), Z


def test_summary_of_a_fit(sample):
    pytest.importorskip("ivmodels")
    X, y, Z = sample
    model = CFLLIVRegressor(**QUICK).fit(X, y, Z=Z)
    text = str(model.summary())
    for words in (
        "1 treatment, 2 instruments",
        "x0, linear",
        "estimate  std. error",
        "x0, Anderson-Rubin",
        "conditional likelihood ratio",
        "Over-identification",
        "Preferred",
    ):
        assert words in text
    assert "inf" not in text and "nan" not in text
    words = "Conditional likelihood ratio sets, Sanderson-Windmeijer F and the rank test assume"
    assert words in text.replace("\n", " ")
    # The learned first stage is not the one to judge here; its F depends on the random state.
    assert "learned" not in text and "learned_effective_f" in model.diagnostics_
    assert model.summary().to_frame().shape == (1, 12)


def test_clusters_and_missing_sets_are_named(sample):
    X, y, Z = sample
    model = CFLLIVRegressor(**QUICK).fit(X, y, Z=Z, groups=np.arange(200) // 10)
    text = str(model.summary())
    assert "clustered, 20 clusters" in text
    words = "Without conditional likelihood ratio sets: their tests assume independent rows"
    assert words in text.replace("\n", " ")


def test_direct_regression_has_a_summary_without_sets(sample):
    X, y, _ = sample
    text = str(CFLLIVRegressor(**QUICK).fit(X, y).summary())
    assert "Average effect" in text and "Anderson-Rubin" not in text and "First stage" not in text
