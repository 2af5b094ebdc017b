"""Summary of a fitted instrumental estimator: tables as text, HTML, LaTeX and a data frame."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from html import escape
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from .confidence_sets import describe
from .fitted import FittedInstruments
from .networks import is_own

__all__ = ["Summary", "Table", "summarise"]

SETS = {
    "anderson_rubin": "Anderson-Rubin",
    "conditional_likelihood_ratio": "conditional likelihood ratio",
}
LATEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"²": "$^2$", "\\": "\\textbackslash{}"})
INFINITE = re.compile(r"\binf\b")
LEAST_WIDTH = 60  # of notes
SHRINKAGE = ("interactions", "features", "ridge")  # of a summary; `shrinkage_` has all


class Table(NamedTuple):
    """A title, the names of all columns but the first, and rows of text."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


class Summary:
    """Tables about a fitted instrumental estimator, printed as text, or as HTML in a notebook.

    Attributes
    ----------
    title : str
    tables : list of Table
    notes : list of str
        Printed below the tables.
    effect : dict or None
        The entries of ``effect_``, which :meth:`to_frame` and :meth:`to_latex` show.
    """

    def __init__(
        self,
        title: str,
        tables: list[Table],
        notes: list[str] | None = None,
        effect: dict[str, Any] | None = None,
    ) -> None:
        self.title, self.tables, self.notes = title, tables, notes or []
        self.effect = effect

    def __str__(self) -> str:
        blocks = [_text(table) for table in self.tables]
        width = max(len(self.title), *(len(line) for block in blocks for line in block))
        lines = [self.title.center(width).rstrip(), "=" * width]
        for i, block in enumerate(blocks):
            lines += ["-" * width] * (i > 0) + block
        notes = [
            line for note in self.notes for line in textwrap.wrap(note, max(width, LEAST_WIDTH))
        ]
        return "\n".join([*lines, "=" * width, *notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        parts = [f"<table><caption>{escape(self.title)}</caption>"]
        for table in self.tables:
            cells = "".join(f"<th>{escape(name)}</th>" for name in (table.title, *table.columns))
            parts.append(f"<tr>{cells}</tr>")
            for label, *values in table.rows:
                cells = "".join(f"<td>{escape(value)}</td>" for value in values)
                parts.append(f"<tr><th>{escape(label)}</th>{cells}</tr>")
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return "".join(parts) + f"</table>{notes}"

    def to_frame(self) -> Any:
        """The effects as numbers, one row per treatment.

        Returns
        -------
        pandas.DataFrame
            With the columns ``estimate``, ``std_error``, ``statistic``, ``p_value``, ``lower`` and
            ``upper`` of the 95% interval, ``tf_std_error`` (one treatment and one instrument),
            ``first_stage_f``, ``anderson_rubin`` and ``conditional_likelihood_ratio`` (lists of
            intervals, or None), ``curve_estimate`` and ``curve_std_error``.

        Raises
        ------
        ImportError
            Without pandas.
        ValueError
            If the fit has no ``effect_``.
        """
        effect = self._effect("to_frame")
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("`to_frame` needs pandas: pip install pandas") from error
        p = len(effect["estimate"])
        tf_error = effect["tf_std_error"]
        columns = {
            "estimate": effect["estimate"],
            "std_error": effect["std_error"],
            "statistic": effect["estimate"] / effect["std_error"],
            "p_value": effect["p_value"],
            "lower": effect["interval"][:, 0],
            "upper": effect["interval"][:, 1],
            "tf_std_error": np.full(p, np.nan) if tf_error is None else tf_error,
            "first_stage_f": effect["first_stage_f"],
        }
        for name in SETS:
            sets = [None] * p if effect[name] is None else [each.tolist() for each in effect[name]]
            columns[name] = pd.Series(sets, index=effect["treatment_names"], dtype=object)
        columns |= {name: effect[name] for name in ("curve_estimate", "curve_std_error")}
        return pd.DataFrame(columns, index=pd.Index(effect["treatment_names"], name="treatment"))

    def to_latex(self) -> str:
        r"""The effects as a table for a paper, with one column per treatment.

        Standard errors stand in parentheses below the estimates. It needs the LaTeX package
        ``booktabs``.

        Returns
        -------
        str
            A ``tabular`` environment.
        """
        effect = self._effect("to_latex")
        low, high = effect["interval"].T
        rows = [
            ("Average effect", [f"{value:.4g}" for value in effect["estimate"]]),
            ("", [f"({value:.4g})" for value in effect["std_error"]]),
            (r"95% interval", [f"[{a:.4g}, {b:.4g}]" for a, b in zip(low, high, strict=True)]),
        ]
        for name, label in SETS.items():
            if effect[name] is not None:
                rows.append((f"95% set, {label}", [describe(each) for each in effect[name]]))
        rows += [
            ("Average slope of the curve", [f"{value:.4g}" for value in effect["curve_estimate"]]),
            ("", [f"({value:.4g})" for value in effect["curve_std_error"]]),
        ]
        strength = [("First-stage F", [f"{value:.2f}" for value in effect["first_stage_f"]])]
        facts = [("Rows", f"{effect['n_samples']:,.0f}"), ("Standard errors", _errors(effect))]
        p = len(effect["estimate"])
        body = strength if effect["n_instruments"] else []
        body += [(label, [value] + [""] * (p - 1)) for label, value in facts]
        head = ("", effect["treatment_names"])
        lines = [rf"\begin{{tabular}}{{l{'c' * p}}}", r"\toprule", _latex(*head), r"\midrule"]
        lines += [_latex(*row) for row in rows] + [r"\midrule"]
        lines += [_latex(*row) for row in body]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])

    def _effect(self, method: str) -> dict[str, Any]:
        if self.effect is None:
            raise ValueError(
                f"`{method}` shows `effect_`, which this fit does not have: it needs diagnose=True "
                "and columns as inputs."
            )
        return self.effect


def _text(table: Table) -> list[str]:
    """Lines of a table: labels are aligned to the left, numbers to the right."""
    header = (table.title, *table.columns)
    rows = [header, *table.rows] if table.columns else table.rows
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [] if table.columns else [table.title] * bool(table.title)
    for label, *values in rows:
        if table.columns:
            cells = [f"{value:>{width}}" for value, width in zip(values, widths[1:], strict=True)]
        else:
            cells = values
        lines.append("  ".join([f"{label:<{widths[0]}}", *cells]).rstrip())
    return lines


def _latex(label: str, cells: list[str]) -> str:
    texts = [INFINITE.sub(r"$\\infty$", text.translate(LATEX)) for text in (label, *cells)]
    return " & ".join(texts).replace("-$", "$-") + r" \\"


def _errors(effect: dict[str, Any]) -> str:
    kind: str = effect["covariance_type"]
    return kind if effect["n_clusters"] is None else f"{kind}, {effect['n_clusters']} clusters"


def summarise(model: FittedInstruments) -> Summary:
    """The tables of a fitted estimator."""
    report, effect = model.diagnostics, model.effect
    tables = [_fit_table(model)]
    if report:
        tables.append(_first_stage(model))
    notes: list[str] = []
    if effect is not None:
        tables += _effect_tables(effect, bool(report))
        notes = _notes(effect, bool(report))
    if report:
        tables.append(_tests(report))
    if "squared_bias" in report:
        bias, cost = report["squared_bias"], report["variance_instrument"]
        rows = [
            ("Squared bias of direct regression", f"{bias:.4g}"),
            ("Variance: instrument / direct", f"{cost:.4g} / {report['variance_direct']:.4g}"),
            ("Held-out loss: direct / instrument", f"{report['loss_ratio']:.3f}"),
        ]
        tables.append(Table("Size of confounding", (), rows))
    tables.append(Table("", (), [("Preferred", model.preferred)]))
    return Summary("Instrumental-variable regression", tables, notes, effect)


def _fit_table(model: FittedInstruments) -> Table:
    plan, models, report = model.plan, model.models, model.diagnostics
    names = ("treatment", "instrument", "confounder")
    columns = ", ".join(
        f"{n} {name}{'' if n == 1 else 's'}"
        for name, shape in zip(names, plan.shapes.values(), strict=True)
        if shape and (n := int(np.prod(shape)))
    )
    own = any(is_own(recipe) for recipe in plan.recipes.values())
    likely = models.shrinkage._asdict()
    shrinkage = ", ".join(f"{name} {likely[name]:g}" for name in SHRINKAGE)
    rows = [("Columns" if not own else "Inputs", columns), ("Rows", f"{models.n_rows:,.6g}")]
    if model.effect is not None:
        rows.append(("Errors of the effect", _errors(model.effect)))
    rows += [
        ("Epochs (kept / trained)", f"{models.best_epoch} / {models.n_epochs}"),
        ("Held-out stage-2 loss", f"{models.held_out_loss:.4f} of the variance of y"),
        ("Shrinkage", shrinkage),
    ]
    if models.folds[0][-1].offset is not None:
        share = float(np.mean([float(fold[-1].share) for fold in models.folds]))
        rows.append(("Share of the linear fit", f"{share:.2f}"))
    if report:
        rows.append(("Stage-1 R² (held out)", f"{report['stage1_score']:.3f}"))
    return Table("", (), rows)


def _names(model: FittedInstruments, n: int) -> list[str]:
    """Names of the treatments, or of learned indices of them."""
    if model.effect is not None and len(model.effect["treatment_names"]) == n:
        return list(model.effect["treatment_names"])
    return [f"index {j}" for j in range(n)] if n > 1 else ["index"]


def _first_stage(model: FittedInstruments) -> Table:
    """Effective F of the linear first stage, and of the learned one where it is the one to judge.

    That of the learned one depends on the random state: a reader could not tell a second number
    that moves from one that means something. ``diagnostics_`` has both.
    """
    report = model.diagnostics
    rows = []
    stages = ("linear",) if report["first_stage"] == "linear" else ("linear", "learned")
    for stage in stages:
        values = report.get(f"{stage}_effective_f", ())
        needed = report.get(f"{stage}_critical_value", ())
        windmeijer = report.get("sanderson_windmeijer_f", ()) if stage == "linear" else ()
        for j, name in enumerate(_names(model, len(values))):
            rows.append(
                (
                    f"{name}, {stage}",
                    f"{values[j]:.2f}",
                    f"{needed[j]:.2f}",
                    f"{windmeijer[j][0]:.2f}" if windmeijer else "",
                )
            )
    return Table("First stage", ("effective F", "weak below", "Sanderson-Windmeijer F"), rows)


def _effect_tables(effect: dict[str, Any], has_instruments: bool) -> list[Table]:
    names, estimate, error = effect["treatment_names"], effect["estimate"], effect["std_error"]
    low, high = effect["interval"].T
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = estimate / error
    rows = []
    for j, name in enumerate(names):
        label = f"{name} (1 - 0)" if effect["is_binary"][j] else name
        values = (estimate[j], error[j], statistic[j], low[j], high[j])
        first, second, t, lower, upper = (f"{value:.4g}" for value in values)
        rows.append((label, first, second, t, f"{effect['p_value'][j]:.3g}", lower, upper))
    blank = ("",) * 4
    if effect["tf_std_error"] is not None:
        rows.append(("  with tF errors", "", f"{effect['tf_std_error'][0]:.4g}", *blank))
    curve = zip(names, effect["curve_estimate"], effect["curve_std_error"], strict=True)
    for name, slope, of_slope in curve:
        label = f"  slope of the curve{'' if len(names) == 1 else f', {name}'}"
        rows.append((label, f"{slope:.4g}", f"{of_slope:.4g}", *blank))
    columns = ("estimate", "std. error", "t", "P>|t|", "[0.025", "0.975]")
    tables = [Table("Average effect", columns, rows)]
    sets = [
        (f"{name}, {label}", describe(effect[kind][j]))
        for j, name in enumerate(names)
        for kind, label in SETS.items()
        if effect[kind] is not None
    ]
    if has_instruments and sets:
        tables.append(Table("95% confidence sets that allow for weak instruments", (), sets))
    return tables


def _notes(effect: dict[str, Any], has_tests: bool) -> list[str]:
    """What the tests and sets assume; which sets are missing, and why."""
    p, q = len(effect["estimate"]), effect["n_instruments"]
    notes = []
    plain = [
        label
        for kind, label in SETS.items()
        if effect[kind] is not None and (p > 1 or kind != "anderson_rubin")
    ]
    if has_tests:
        kind = effect["covariance_type"]
        assuming = "".join(f"{label} sets, " for label in plain)
        assuming += "Sanderson-Windmeijer F and the rank test"
        notes.append(
            f"{assuming[0].upper()}{assuming[1:]} assume independent errors of one variance; "
            f"standard errors, effective F, the other sets and tests are {kind}."
        )
    missing = [
        label
        for kind, label in SETS.items()
        if effect[kind] is None and q >= p and (q > p or kind == "anderson_rubin") and q
    ]
    if not missing:
        return notes
    if effect["n_clusters"] is not None:
        reason = "their tests assume independent rows, and rows are clustered"
    elif find_spec("ivmodels") is not None:
        reason = "their tests have no solution here; rows are too few, or y has no error"
    else:
        reason = "they need ivmodels, pip install sklearn-cfll[iv]"
    return [*notes, f"Without {' and '.join(missing)} sets: {reason}."]


def _tests(report: dict[str, Any]) -> Table:
    learned = report["first_stage"] == "learned"
    named = {
        "First-stage F (learned instrument)": report["first_stage_f"] if learned else None,
        "Rank of the first stage": report.get("rank_test"),
        "Over-identification (Hansen J)": report["overidentification"],
        "Wu-Hausman (is there confounding)": report["wu_hausman"],
    }
    rows = []
    for label, found in named.items():
        if found is None or not np.isfinite(found[0]):
            continue
        statistic, df, p_value = found
        rows.append((label, f"{statistic:.3f}", ", ".join(map(str, df)), f"{p_value:.3g}"))
    return Table("Tests", ("statistic", "df", "p-value"), rows)
