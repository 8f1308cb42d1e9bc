"""Files to records and back: the front door of goodheart's data.

    pairs = read_records("pairs.jsonl", "preference")
    pairs.records   # Judgement(prompt, answers, ranks, ...) each
    pairs.bad       # BadRow(source, line, reason, excerpt): set aside, counted, listed
    train, held_out = split_by_prompt(pairs.records, 0.1, seed=0)
    convert("pairs.jsonl", "pairs.parquet", to="trl-preference")

sources.py finds files, streams.py unpacks them, files.py cuts them into rows, shapes.py knows the columns and
mapping.py learns others, kinds.py turns one kind of record into another, reading.py counts and sets aside; layouts.py,
convert.py and writing.py go the other way. gather.py makes one label of many, crowd.py reads votes for statistics.
"""

from __future__ import annotations

from goodheart.data.convert import Converted, convert
from goodheart.data.files import Row, read_rows
from goodheart.data.gather import LABELS, Labels, gather, read_weights
from goodheart.data.kinds import as_kind, best_answer, is_identical, kind_of
from goodheart.data.layouts import LAYOUTS, LOSES, to_rows
from goodheart.data.messages import RowError
from goodheart.data.reading import BadRow, Kind, Loaded, iter_records, parse, read_records
from goodheart.data.shapes import SHAPES, Record, Shape
from goodheart.data.splits import opening, split_by_prompt, texts_of
from goodheart.data.writing import write_rows

__all__ = [
    "LABELS",
    "LAYOUTS",
    "LOSES",
    "SHAPES",
    "BadRow",
    "Converted",
    "Kind",
    "Labels",
    "Loaded",
    "Record",
    "Row",
    "RowError",
    "Shape",
    "as_kind",
    "best_answer",
    "convert",
    "gather",
    "is_identical",
    "iter_records",
    "kind_of",
    "opening",
    "parse",
    "read_records",
    "read_rows",
    "read_weights",
    "split_by_prompt",
    "texts_of",
    "to_rows",
    "write_rows",
]
