"""The products of a finished run in the layouts that other people's trainers read."""

from pipelines.exports.deepfakebench import export_deepfakebench
from pipelines.exports.dfdc import export_dfdc
from pipelines.exports.source import ExportCount

__all__ = ["ExportCount", "export_deepfakebench", "export_dfdc"]
