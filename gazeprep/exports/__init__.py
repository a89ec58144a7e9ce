"""Shards -> what other people's tools and the published code read."""

from gazeprep.exports.run import FORMATS, ExportConfig, ExportReport, export

__all__ = ["FORMATS", "ExportConfig", "ExportReport", "export"]
