"""From a raw frame, with categories, text and gaps, to a scored, explained and saved model.

python examples/tables.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from sklearn_cfll import CFLLClassifier


def make_table(n_rows: int = 1500) -> tuple[pd.DataFrame, np.ndarray]:
    """Customers, and whether they buy; towns and ages are missing here and there."""
    rng, sizes = np.random.default_rng(0), ["S", "M", "L"]
    table = pd.DataFrame(
        {
            "age": rng.integers(18, 80, n_rows).astype(float),
            "income": rng.lognormal(10, 0.6, n_rows),
            "member": rng.random(n_rows) < 0.3,
            "town": rng.choice(["Bonn", "Lyon", "Turin"], n_rows),
            "size": pd.Categorical(rng.choice(sizes, n_rows), sizes, ordered=True),
            "street": rng.choice([f"street {i}" for i in range(200)], n_rows),  # says nothing
        }
    )
    effect = table["town"].map({"Bonn": -0.8, "Lyon": 1.2, "Turin": 0.0}) + table["member"]
    score = np.sin(table["age"] / 9) + np.log(table["income"] / 22_000) + effect
    bought = np.where(score + rng.normal(0, 0.5, n_rows) > 0.6, "buys", "leaves")
    table.loc[rng.random(n_rows) < 0.1, "age"] = np.nan
    table.loc[rng.random(n_rows) < 0.1, "town"] = None
    return table, bought


def main() -> float:
    table, y = make_table()
    train, test, y_train, y_test = train_test_split(table, y, random_state=0)
    model = CFLLClassifier(random_state=0).fit(train, y_train)
    accuracy = model.score(test, y_test)
    print(f"accuracy {accuracy:.3f}, log loss {log_loss(y_test, model.predict_proba(test)):.3f}")
    print(pd.Series(model.feature_importances_, table.columns).round(3).to_string())

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.npz"
        model.save(path)  # arrays and JSON: opening it runs no code
        opened = CFLLClassifier.load(path)
    turned = test[test.columns[::-1]]  # names decide, not the order
    same = np.array_equal(opened.predict_proba(turned), model.predict_proba(test))
    print("saved, opened, same probabilities:", same)
    return accuracy


if __name__ == "__main__":
    main()
