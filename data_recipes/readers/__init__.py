"""Readers: files, tables, JSON, Parquet and the hub -> rows of cells."""
