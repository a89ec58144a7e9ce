"""Readers: the only files that know a raw column name, file name or unit conversion."""
