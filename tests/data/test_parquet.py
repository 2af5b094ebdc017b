"""ParquetDataset: files and directories of tables with categories, text and gaps."""

import time

import numpy as np
import pandas as pd
import pytest

from sklearn_cfll import CFLLClassifier, CFLLRegressor
from sklearn_cfll.data import ParquetDataset
from sklearn_cfll.estimator import streaming

pq = pytest.importorskip("pyarrow.parquet")
pa = pytest.importorskip("pyarrow")

N = 2400
SMALL = {"hidden_layer_sizes": (16, 16), "max_epochs": 3, "random_state": 0}


def make_table():
    """Numbers, words, categories, gaps, a weight and two targets."""
    random = np.random.default_rng(0)
    size, color = random.normal(size=N), random.integers(3, size=N)
    frame = pd.DataFrame(
        {
            "size": np.where(random.random(N) < 0.1, np.nan, size),
            "color": np.array(["red", "green", "blue"], dtype=object)[color],
            "grade": pd.Categorical(np.array(list("abc"))[random.integers(3, size=N)]),
            "count": random.integers(10, size=N),
            "weight": 1.0 + (np.arange(N) % 2),
            "price": size + color + 0.1 * random.normal(size=N),
        }
    )
    frame.loc[random.random(N) < 0.1, "color"] = None
    frame.loc[1777, "color"] = "gold"  # a level of a single row
    frame["other"] = -frame["price"]
    return frame


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three files with row groups of 100 rows; a sample of 600 rows."""
    monkeypatch.setattr(streaming, "ENTRIES", 600 * 4)
    monkeypatch.setattr(streaming, "MOST_IN_BLOCK", 500)
    table = pa.Table.from_pandas(make_table(), preserve_index=False)
    for i in range(3):
        part = table.slice(800 * i, 800)
        pq.write_table(part, tmp_path / f"part-{i}.parquet", row_group_size=100)
    return tmp_path


def columns():
    return ["size", "color", "grade", "count"]


def test_a_directory_is_fitted_as_its_table_in_memory(folder):
    frame = make_table()
    rows = ParquetDataset(folder, "price", columns=columns(), weight="weight")
    assert len(rows) == N
    model = CFLLRegressor(**SMALL).fit(rows)
    assert model.feature_names_in_.tolist() == columns()
    X, y = frame[columns()], frame["price"].to_numpy()
    in_memory = CFLLRegressor(**SMALL).fit(X, y, sample_weight=frame["weight"])
    found, expected = (np.mean((m.predict(X) - y) ** 2) for m in (model, in_memory))
    assert found < 1.3 * expected
    np.testing.assert_array_equal(model.predict(rows), model.predict(X))
    levels = model._model.plan.reader.contents[1].levels
    assert levels == ("blue", "gold", "green", "red")


def test_a_single_file_several_targets_and_labels(folder):
    frame = make_table()
    file = folder / "part-0.parquet"
    rows = ParquetDataset(file, ["price", "other"], columns=columns())
    assert CFLLRegressor(**SMALL).fit(rows).predict(rows).shape == (800, 2)
    labels = ParquetDataset(folder, "grade", columns=["size", "count"])
    model = CFLLClassifier(**SMALL).fit(labels)
    assert model.classes_.tolist() == ["a", "b", "c"]
    assert model.predict_proba(frame[["size", "count"]]).shape == (N, 3)


def test_row_groups_come_in_another_order_for_each_seed(folder):
    rows = ParquetDataset(folder, "price", columns=columns())
    first, again, other = (
        np.concatenate([block.y for block in rows.blocks(seed)]) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(np.sort(first), np.sort(make_table()["price"]))
    np.testing.assert_array_equal(np.concatenate([b.y for b in rows]), make_table()["price"])


@pytest.mark.parametrize("seed", [None, 0])
def test_a_slow_reader_is_not_read_ahead_of(tmp_path, seed):
    columns = {f"x{i}": np.random.default_rng(i).normal(size=200_000) for i in range(5)}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet", row_group_size=5000)
    allocated = []
    before = pa.total_allocated_bytes()
    for _ in ParquetDataset(tmp_path, "x0").blocks(seed):
        time.sleep(0.01)
        allocated.append(pa.total_allocated_bytes() - before)
    assert max(allocated) < 8 * 200_000 * 5 / 4  # a quarter of the file


def test_partial_fit_follows_the_row_groups(folder):
    rows = ParquetDataset(folder, "price", columns=columns(), block_rows=100)
    frame = make_table()
    model = CFLLRegressor(**SMALL).partial_fit(rows)
    error = np.mean((model.predict(frame[columns()]) - frame["price"]) ** 2)
    assert error < 0.5 * frame["price"].var()


def test_wrong_columns_and_missing_targets_are_named(folder):
    with pytest.raises(ValueError, match="no column 'prize'"):
        ParquetDataset(folder, "prize")
    with pytest.raises(ValueError, match="leave it out"):
        ParquetDataset(folder, "price", columns=["size", "price"])
    with pytest.raises(ValueError, match="'size'.*has no value"):
        CFLLRegressor(**SMALL).fit(ParquetDataset(folder, "size", columns=["count"]))


def files(folder, *columns):
    """A file for each form of the column "x", beside the target."""
    random = np.random.default_rng(0)
    for i, column in enumerate(columns):
        rows = {"x": column, "y": random.normal(size=len(column))}
        pq.write_table(pa.table(rows), folder / f"{i}.parquet")
    return ParquetDataset(folder, "y")


WORDS, LETTERS = ["low", "high"] * 30, pa.array(["low", "top"] * 30).dictionary_encode()
UNLIKE = {
    "integers, then floats": (np.arange(60), np.arange(60) + 0.5),
    "gaps, then text": (pa.nulls(60), WORDS),
    "no rows, then text": (pa.nulls(0), WORDS),
    "categories, then text": (LETTERS, WORDS),
    "text, then categories": (WORDS, LETTERS),
}


@pytest.mark.parametrize("columns", UNLIKE.values(), ids=UNLIKE)
def test_files_of_other_types_are_read_as_one_table(tmp_path, columns):
    rows = files(tmp_path, *columns)
    found = [value for block in rows for value in block.X.column("x").to_pylist()]
    assert found == [v for each in columns for v in pa.array(each).to_pylist()]
    assert CFLLRegressor(**SMALL).fit(rows).predict(rows).shape == (len(found),)


def test_a_column_that_the_first_file_lacks_is_read(tmp_path):
    pq.write_table(pa.table({"z": np.arange(60), "y": np.arange(60.0)}), tmp_path / "0.parquet")
    pq.write_table(
        pa.table({"x": WORDS, "z": np.arange(60), "y": np.arange(60.0)}), tmp_path / "1.parquet"
    )
    rows = ParquetDataset(tmp_path, "y")
    assert sorted(rows.columns) == ["x", "z"]
    assert [b.X.column("x").null_count for b in rows] == [60, 0]


def test_what_cannot_be_read_as_one_table_is_named(tmp_path):
    with pytest.raises(ValueError, match="no Parquet files"):
        ParquetDataset(tmp_path, "y")
    with pytest.raises(ValueError, match=r"'x' is int64 in .*0.parquet.* and string in"):
        files(tmp_path, np.arange(60), WORDS)
    rows = files(tmp_path, np.arange(60), np.arange(60))
    assert rows.columns == ["x"]
    with pytest.raises(ValueError, match="more than once"):
        ParquetDataset(tmp_path, "y", columns=["x", "x"])
    with pytest.raises(ValueError, match="No column"):
        ParquetDataset(tmp_path, "y", columns=[])
    y = np.where(np.arange(60) == 7, np.nan, 1.0)  # no value, in a float's own way
    gaps = pa.table({"x": y, "y": pa.array(y, from_pandas=False)})
    pq.write_table(gaps, tmp_path / "1.parquet")
    with pytest.raises(ValueError, match="'y'.*has no value in 1 of 60"):
        CFLLRegressor(**SMALL).fit(ParquetDataset(tmp_path, "y"))


def test_without_pyarrow_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.dataset", None)
    with pytest.raises(ImportError, match=r"sklearn-cfll\[parquet\]"):
        ParquetDataset(folder, "price")
