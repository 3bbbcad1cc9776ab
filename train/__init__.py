"""Training and evaluation on Ray Train."""

__all__: list[str] = []
