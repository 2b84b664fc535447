"""Packets that come back from a file as they went in."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import clips
import pytest
from av.packet import PacketSideData, packet_sidedata_type_from_literal

from daemon.packet_file import PacketFile, PacketFileWriter, is_whole


def facts(packet):
    sides = [(data.data_type, bytes(data)) for data in packet.iter_sidedata()]
    return packet.pts, packet.dts, packet.duration, packet.is_keyframe, sides, bytes(packet)


def encoded(tmp_path: Path) -> list[av.Packet]:
    """Packets of an encoder with B-frames, and one with everything unusual."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 64, 48, "yuv420p", Fraction(1, 25)
    packets = []
    for number, frame in enumerate([*clips.video_frames(30, 64, 48, "yuv420p"), None]):
        if frame:
            frame.pts = number
        packets += encoder.encode(frame)
    odd = av.Packet(b"")
    odd.pts, odd.duration = -(2**40), 7
    data = PacketSideData(packet_sidedata_type_from_literal("matroska_block_additional"), 5)
    data.update(b"alpha")
    odd.set_sidedata(data)
    return [*packets, odd]


def test_packets_keep_their_data_times_flags_and_side_data(tmp_path):
    packets = encoded(tmp_path)
    assert any(packet.iter_sidedata() for packet in packets)
    writer = PacketFileWriter(tmp_path / "a.packets")
    for packet in packets:
        writer.write(packet)
    writer.commit({"frames": 30, "text": "Ünder"})
    with PacketFile(tmp_path / "a.packets") as file:
        assert file.record == {"frames": 30, "text": "Ünder"}
        assert [facts(packet) for packet in file] == [facts(packet) for packet in packets]
        assert len(list(file)) == len(packets)  # and may be read again


def test_nothing_has_the_name_before_it_is_whole(tmp_path):
    writer = PacketFileWriter(tmp_path / "a.packets")
    writer.write(encoded(tmp_path)[0])
    assert not (tmp_path / "a.packets").exists()
    writer.commit({})
    assert is_whole(tmp_path / "a.packets")
    assert [path.name for path in tmp_path.iterdir()] == ["a.packets"]


def test_what_is_discarded_leaves_nothing(tmp_path):
    PacketFileWriter(tmp_path / "a.packets").discard()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("share", [0, 1, 30, 90])
def test_what_was_cut_is_not_taken_for_whole(tmp_path, share):
    path = tmp_path / "a.packets"
    writer = PacketFileWriter(path)
    for packet in encoded(tmp_path):
        writer.write(packet)
    writer.commit({})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * share // 100])
    assert not is_whole(path)
    assert not is_whole(tmp_path / "none")
