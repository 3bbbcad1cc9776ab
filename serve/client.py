"""The desk as the door sees it: its answers unwrapped, a refusal raised."""

from typing import Any

from serve.faults import ApiError

__all__ = ["DeskClient"]


class DeskClient:
    """Calls the desk.

    Args:
        handle: Of the deployment, or anything with the same methods under `.remote`.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method that gives an `Answer`.

        Raises:
            ApiError: It refuses, or the desk is being started again.
        """
        answer = await self.plain(method, *args, **kwargs)
        if "refused" in answer:
            refused = answer["refused"]
            raise ApiError(refused["code"], refused["message"], refused["retry_after_s"])
        return answer["ok"]

    async def plain(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method that gives its result as it is.

        Raises:
            ApiError: The desk is being started again.
        """
        from ray.exceptions import RayActorError

        try:
            return await getattr(self._handle, method).remote(*args, **kwargs)
        except RayActorError:
            raise ApiError("NOT_READY", "The service is recovering; try again", 3) from None
