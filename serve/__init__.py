"""Live streams and uploads on Ray Serve."""

__all__: list[str] = []
