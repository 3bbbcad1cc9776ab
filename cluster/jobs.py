"""Jobs on a cluster, by Ray's job API: hand one in, follow what it says, learn its exit code, stop it."""

import asyncio
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unmask.errors import UsageError

__all__ = ["PACKAGES", "JobServer", "packed"]

PACKAGES = ("unmask", "pipelines", "train", "serve", "cluster")
"""What of a checkout travels to the cluster."""
# Ray refuses more than 512 MiB; this much is somebody's data and no code.
_MOST_BYTES = 100 * 2**20
_POLL_S, _STOP_S, _KNOCK_S = 1.0, 60.0, 10.0
# A head that is restarted answers again within about this time.
_AWAY_S = 120.0
_OUR_STOP = 130
_ADDRESS = "RAY_API_SERVER_ADDRESS"


@contextmanager
def packed(checkout: Path, include: Sequence[Path] = ()) -> Iterator[Path]:
    """A folder with the code of a checkout, and nothing of the data that lies beside it.

    Args:
        checkout: Holds the packages.
        include: Files and folders in it that are wanted, too.

    Raises:
        UsageError: It is no checkout, what is to be included is not in it, or all of it is too large.
    """
    if missing := [name for name in PACKAGES if not (checkout / name / "__init__.py").is_file()]:
        raise UsageError(
            f"{checkout} holds no checkout of Unmask ({missing[0]}/ is missing): go there, give --working-dir, or give "
            "--no-pack to use what is installed on the cluster"
        )
    with tempfile.TemporaryDirectory(prefix="unmask-job-") as folder:
        for name in (*map(Path, PACKAGES), *(_inside(checkout, path) for path in include)):
            _copy(checkout / name, Path(folder) / name)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        if size > _MOST_BYTES:
            raise UsageError(
                f"{size / 2**20:.0f} MiB are too much to travel with a job (at most {_MOST_BYTES >> 20}): put data "
                "where the cluster reads it"
            )
        yield Path(folder)


def _inside(checkout: Path, path: Path) -> Path:
    found = (checkout / path).resolve()
    if not found.exists() or not found.is_relative_to(checkout.resolve()):
        raise UsageError(f"--include {path} is not in {checkout}; name files and folders there")
    return found.relative_to(checkout.resolve())


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        skipped = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
        shutil.copytree(source, target, ignore=skipped, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


class JobServer:
    """The job server of a cluster.

    Args:
        address: `http://HEAD:8265`, or an address that `ray.init` takes; None takes that of the environment.

    Attributes:
        address: As a person may use it.

    Raises:
        UsageError: It cannot be reached, or does not let in.
    """

    def __init__(self, address: str | None) -> None:
        if address is None and not {_ADDRESS, "RAY_ADDRESS"} & os.environ.keys():
            raise UsageError("give --address http://HEAD:8265, the dashboard of the cluster, or set RAY_ADDRESS")
        if address is not None:
            os.environ[_ADDRESS] = address  # else Ray prefers RAY_ADDRESS to what is given
        self.address = address or os.environ.get(_ADDRESS) or os.environ["RAY_ADDRESS"]
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray").setLevel(logging.WARNING)  # else it tells of uploads and connections
        with self._telling("reached"):
            _knock(self.address)
            self._client = JobSubmissionClient(self.address)

    @contextmanager
    def _telling(self, done: str) -> Iterator[None]:
        try:
            yield
        except UsageError:
            raise
        except Exception as error:  # of many classes
            text = " ".join(str(error).split())
            if any(code in text for code in ("401", "403", "Unauthenticated", "Unauthorized")):
                raise UsageError(
                    f"the cluster at {self.address} wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
                    "RAY_AUTH_TOKEN_PATH"
                ) from None
            raise UsageError(
                f"Ray's job server at {self.address} cannot be {done} ({text[:200].rstrip('.')}); check --address, the "
                "dashboard of the cluster"
            ) from None

    def begin(
        self,
        entrypoint: str,
        *,
        name: str,
        working_dir: Path | None,
        cpus: float = 0.0,
        gpus: float = 0.0,
    ) -> str:
        """Hand a job in.

        Args:
            entrypoint: A shell command.
            name: Its id; no other job has it.
            working_dir: Travels there and is where it works; None for what is installed there.
            cpus: That its driver holds.
            gpus: The same.

        Returns:
            Its id.
        """
        runtime = {} if working_dir is None else {"working_dir": str(working_dir)}
        with self._telling("asked"):
            return str(
                self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=name,
                    runtime_env=runtime,
                    entrypoint_num_cpus=cpus or None,
                    entrypoint_num_gpus=gpus or None,
                )
            )

    def follow(self, job: str, write: Callable[[str], object]) -> int:
        """Pass on what a job says until it has ended.

        Args:
            job: Its id.
            write: Takes the text as it comes.

        Returns:
            Its exit code; 130 where it was stopped, and 1 where it never began.
        """
        shown = 0
        while True:
            shown = asyncio.run(self._tail(job, shown, write))
            info = self._patiently(job)
            if info.status.is_terminal():
                write(self._logs(job)[shown:])
                return _code(info, write)
            time.sleep(_POLL_S)  # the connection was lost

    async def _tail(self, job: str, skip: int, write: Callable[[str], object]) -> int:
        """Pass on a job's log from its character `skip` on; how many characters are passed on, then."""
        seen = 0
        try:
            async for text in self._client.tail_job_logs(job):
                if seen + len(text) > skip:
                    write(text[max(skip - seen, 0) :])
                seen += len(text)
        except Exception:  # noqa: S110  # the connection; it is made again
            pass
        return max(seen, skip)

    def _info(self, job: str) -> Any:
        with self._telling("asked"):
            return self._client.get_job_info(job)

    def _patiently(self, job: str) -> Any:
        """As `_info`, where nobody may answer for a while."""
        deadline = time.monotonic() + _AWAY_S
        while True:
            try:
                return self._info(job)
            except UsageError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_S)

    def _logs(self, job: str) -> str:
        with self._telling("asked"):
            return str(self._client.get_job_logs(job) or "")

    def stop(self, job: str) -> bool:
        """Stop a job, and wait until it has ended: whether it has."""
        with self._telling("asked"):
            self._client.stop_job(job)
        deadline = time.monotonic() + _STOP_S
        while not self._patiently(job).status.is_terminal():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True


def _knock(address: str) -> None:
    """See that somebody answers: Ray itself would wait for ever for one who is silent."""
    import httpx

    if address.startswith(("http://", "https://")):
        httpx.get(f"{address.rstrip('/')}/api/version", timeout=_KNOCK_S)


def _code(info: Any, write: Callable[[str], object]) -> int:
    status = str(info.status.value)
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return _OUR_STOP
    if info.driver_exit_code is None:
        lines = [line.strip() for line in str(info.message or "").splitlines() if line.strip()]
        write(f"unmask: the job did not begin ({lines[-1][:300] if lines else status})\n")
        return 1
    # As a shell tells the end by a signal.
    return int(info.driver_exit_code) if info.driver_exit_code > 0 else 128 - int(info.driver_exit_code)
