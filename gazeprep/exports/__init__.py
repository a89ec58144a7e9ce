"""Shards -> what other people's tools and the published code read."""

from gazeprep.exports.run import FORMATS, MAP_GRIDS, ExportConfig, ExportReport, export

__all__ = ["FORMATS", "MAP_GRIDS", "ExportConfig", "ExportReport", "export"]
