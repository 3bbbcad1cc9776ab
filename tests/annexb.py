"""The access units of H.264 clips, as a program sends them over a socket."""

from pathlib import Path

import av

__all__ = ["access_units"]


def access_units(clip: Path) -> list[tuple[float, bytes]]:
    """Time of presentation in seconds and bytes (Annex B) of each picture, in the order of decoding."""
    with av.open(clip) as container:
        stream = container.streams.video[0]
        annex_b = av.BitStreamFilterContext("h264_mp4toannexb", stream)
        base, units = float(stream.time_base or 0), []
        for packet in container.demux(stream):
            if packet.pts is not None:
                pts_s = float(packet.pts * base)
                units += [(pts_s, bytes(filtered)) for filtered in annex_b.filter(packet)]
    return units
