"""Rows of the store as Parquet: written, and brought into the store's schema."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gcsr import TrialConfig
from tune.schema import LATER_FIELDS, TRIALS, check_rows

__all__ = ["PARQUET_FORMAT", "conformed", "first_of_each", "parquet_bytes"]

PARQUET_FORMAT: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
"""Of every file: without checksums a rotten bit is just another number."""


def parquet_bytes(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    """A file of these rows."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, **PARQUET_FORMAT)
    return buffer.getvalue()


def conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with the store's schema: metrics that an older version did not have are null.

    Raises:
        KeyError, ValueError: the table is none of ours.
    """
    if not table.schema.equals(schema):
        table = _with_schema(table, schema)
    if schema is TRIALS:
        check_rows(table)
    return table.replace_schema_metadata(schema.metadata)


def _with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    arrays = []
    for field in schema:
        if field.name in table.column_names:
            arrays.append(table[field.name].cast(field.type))
        elif field.name in LATER_FIELDS:
            models = table["model"].to_pylist()
            arrays.append(pa.array([TrialConfig.before_there_was(model)[field.name] for model in models], field.type))
        elif field.nullable:
            arrays.append(pa.nulls(len(table), field.type))
        else:
            raise KeyError(f"no column {field.name}")
    return pa.table(arrays, schema=schema)


def first_of_each(table: pa.Table) -> pa.Table:
    """The rows without those whose trial was there before."""
    rows = pa.table({"trial_id": table["trial_id"], "row": pa.array(range(len(table)), pa.int64())})
    firsts = rows.group_by("trial_id", use_threads=False).aggregate([("row", "min")])["row_min"]
    return table if len(firsts) == len(table) else table.take(firsts)
