"""Data sets: their sources, their content, and batches of them.

No function makes a floating-point copy of a data set. Images stay uint8 from the file to the operators, which read a
pixel as x/255.
"""

from fastvae.data.batches import Batches
from fastvae.data.columns import join_column, split_column
from fastvae.data.dataset import Dataset
from fastvae.data.idx import read_idx
from fastvae.data.published import DatasetName, Images, load
from fastvae.data.rows import Data, Rows, take
from fastvae.data.sources import Layout, Source, read

__all__ = [
    "Batches",
    "Data",
    "Dataset",
    "DatasetName",
    "Images",
    "Layout",
    "Rows",
    "Source",
    "join_column",
    "load",
    "read",
    "read_idx",
    "split_column",
    "take",
]
