"""A mixed-type table, a search over settings, probabilities and a file: the usual day.

python examples/tabular.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.metrics import log_loss
from sklearn.model_selection import RandomizedSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sklearn_cfll import CFLLClassifier


def make_table(n_rows: int = 1500) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "age": rng.integers(18, 80, n_rows),
            "income": rng.lognormal(10, 0.6, n_rows),
            "city": rng.choice(["Bonn", "Lyon", "Turin"], n_rows),
        }
    )
    effect = table["city"].map({"Bonn": -0.5, "Lyon": 0.8, "Turin": 0.0})
    score = np.sin(table["age"] / 9) + np.log(table["income"] / 22_000) + effect
    chosen = np.where(score + rng.normal(0, 0.5, n_rows) > 0.3, "buys", "leaves")
    return table, chosen


def main() -> float:
    table, y = make_table()
    train, test, y_train, y_test = train_test_split(table, y, random_state=0)
    columns = ColumnTransformer(
        [
            ("numbers", StandardScaler(), ["age", "income"]),
            ("names", OneHotEncoder(sparse_output=False), ["city"]),
        ]
    )
    model = make_pipeline(columns, CFLLClassifier(hidden_layer_sizes=(64, 64), random_state=0))
    search = RandomizedSearchCV(
        model,
        {
            "cfllclassifier__ridge": [0.3, 1.0, 3.0, 10.0, 30.0],
            "cfllclassifier__decay": [1.0, 0.9],
            "cfllclassifier__learning_rate": [0.005, 0.02],
        },
        n_iter=6,
        cv=3,
        random_state=0,
    ).fit(train, y_train)
    print("best settings:", search.best_params_)
    print(f"accuracy {search.score(test, y_test):.3f}")
    print(f"log loss {log_loss(y_test, search.predict_proba(test)):.3f}")

    classifier = search.best_estimator_[-1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "classifier.npz"
        classifier.save(path)  # arrays and JSON: opening it runs no code
        opened = CFLLClassifier.load(path)
    rows = search.best_estimator_[:-1].transform(test)
    print(
        "saved, opened, same probabilities:",
        np.array_equal(opened.predict_proba(rows), classifier.predict_proba(rows)),
    )
    return search.score(test, y_test)


if __name__ == "__main__":
    main()
