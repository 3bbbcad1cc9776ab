"""What every process of a run must know."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipelines.config import Job
from pipelines.shards import Shards
from unmask.manifest import Manifest, Video
from unmask.storage import Store

if TYPE_CHECKING:
    from pipelines.embedders import EmbedPlan

__all__ = ["MANIFEST_FILE", "Work"]

MANIFEST_FILE = "manifest.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A job on its way. Sent to every process once."""

    store: Store
    """The output."""
    run: int
    """Number of this run: an output is begun by the first, and continued by others after interruptions."""
    job: Job
    shards: Shards
    plans: tuple["EmbedPlan", ...]
    """Backbones whose features are kept; where videos are scored, the scoring model's is last."""
    keys: tuple[str, ...]
    """Names of the features that are kept."""
    config: str
    """Digest of the configuration."""
    detector: str
    """Digest of the detector."""
    dataset: str = "table"
    """Kind of the dataset."""
    device: str = "auto"
    max_batch_bytes: int = 64 * 1024**2
    decode_timeout_s: float = 60.0
    fault: Mapping[str, str] = field(default_factory=dict)
    """For tests: what shall happen to the decoder of a video."""

    def videos(self, shard: int) -> list[Video]:
        """The rows of the manifest that make a shard."""
        with Manifest(self.store.uri_of(MANIFEST_FILE)) as manifest:
            return manifest.read(*self.shards.span(shard))
