"""The desk as the door sees it: its answers unwrapped, a refusal raised."""

from typing import Any

from serve.faults import ApiError
from serve.within import within

__all__ = ["DeskClient"]


# While the desk's node is lost, nobody answers; some calls may load a model first.
_ANSWER_S, _LOAD_S = 45.0, 150.0
_LOADING = ("put_model", "open_socket")


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

        call = getattr(self._handle, method).remote(*args, **kwargs)
        try:
            return await within(_LOAD_S if method in _LOADING else _ANSWER_S, call)
        except (RayActorError, TimeoutError):
            raise ApiError("NOT_READY", "The service is recovering; try again", 3) from None
