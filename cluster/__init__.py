"""Deployment: images, KubeRay, ray up, and a smoke test of a live cluster."""

__all__: list[str] = []
