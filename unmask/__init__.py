"""Unmask finds manipulated faces in video. This is its core: from a file to a verdict, without a cluster."""

__all__ = ["__version__"]

__version__ = "0.1.0"
