"""Tables larger than memory: data sets that are read in blocks of rows."""

from .parquet import ParquetDataset

__all__ = ["ParquetDataset"]
