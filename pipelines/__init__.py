"""Datasets on Ray Data: videos in; faces, features and scores out."""

__all__: list[str] = []
