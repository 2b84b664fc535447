from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import clips
import numpy as np
import pytest

from daemon.assembly import Assembly
from daemon.colour import to_rgb
from daemon.encoding import Encoding
from daemon.errors import SinkError
from daemon.file_source import FileSource
from daemon.packet_file import PacketFile
from daemon.planes import Original
from daemon.segment_writer import SegmentWriter
from daemon.video import VideoJob, restore_video
from daemon.video_setup import video_setup
from engine.driver import why_no_gpu
from engine.identity import IdentityEngine
from engine.model import Manifest, Model
from engine.protocol import EngineOptions

LOSSLESS = Encoding(lossless=True)
VFR = [0, 40, 80, 240, 250, 300, 1000, 1040, 1111, 1200]


def identity() -> IdentityEngine:
    manifest = Manifest(id="none", file="none.onnx", sha256="0" * 64, stride=16, overlap_px=32)
    return IdentityEngine(Model(manifest, Path("none.json"), b""), EngineOptions())


def copy(source, target, encoding=LOSSLESS, *, overwrite=False) -> list[str]:
    """Restore every frame to itself; what was not kept."""
    with identity() as engine:
        return list(restore_video(VideoJob(source, target, encoding, overwrite), engine).warnings)


def changed(source, target, change, encoding=LOSSLESS) -> list[str]:
    """Write every frame as `change` makes it; what was not kept."""
    video = video_setup(source, target, encoding)
    segment = target.with_suffix(".packets")
    writer = SegmentWriter(segment, target, video)
    with FileSource(source) as frames:
        for frame in frames:
            buffer = writer.lend(frame)
            np.copyto(buffer, frame.pixels)
            writer.send(change(replace(frame, pixels=buffer)))
    writer.close()
    writer.commit(frames.damage, frames.warnings)
    with PacketFile(segment) as packets, Assembly(source, target, target, video) as assembly:
        assembly.add(0, packets)
        assembly.close()
        return [*assembly.notes, *writer.notes]


def names_in(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refusal(source, target, *arguments, **options) -> str:
    """The text of the refusal; checks that nothing is left behind."""
    before = names_in(source.parent)
    with pytest.raises(SinkError) as caught:
        copy(source, target, *arguments, **options)
    assert names_in(source.parent) == before
    text = str(caught.value)
    assert str(target) in text or str(target.parent) in text
    assert "\n" not in text
    assert "Errno" not in text
    return text


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_times_stay_exact(tmp_path, suffix):
    source = clips.write_video(tmp_path / f"a{suffix}", count=10, pts=VFR, time_base=Fraction(1, 1000))
    copy(source, tmp_path / f"b{suffix}")
    assert clips.times_of(tmp_path / f"b{suffix}") == [Fraction(ms, 1000) for ms in VFR]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_late_start_stays_late(tmp_path, suffix):
    source = clips.write_video(tmp_path / f"a{suffix}", count=10, pts=range(75, 85))
    copy(source, tmp_path / f"b{suffix}")
    assert clips.times_of(tmp_path / f"b{suffix}")[0] == 3


@pytest.mark.parametrize("matrix", [1, 2, 6])
@pytest.mark.parametrize("color_range", [0, 2])
def test_without_loss_luma_is_the_same_and_chroma_to_rounding(tmp_path, matrix, color_range):
    source = clips.write_video(tmp_path / "a.mp4", count=5, matrix=matrix, color_range=color_range)
    copy(source, tmp_path / "b.mp4")
    was, now = clips.frames_of(source), clips.frames_of(tmp_path / "b.mp4")
    for old, new in zip(was, now, strict=True):
        assert (new.format.name, new.colorspace, new.color_range) == (old.format.name, old.colorspace, old.color_range)
        luma, *chroma = (np.abs(x - y).max() for x, y in zip(clips.planes_of(old), clips.planes_of(new), strict=True))
        assert luma == 0
        assert max(chroma) <= 1


def test_the_other_streams_are_copied_to_the_bit(tmp_path):
    source = clips.write_video(tmp_path / "a.mp4", count=50, audio="aac")
    notes = copy(source, tmp_path / "b.mp4")
    assert clips.packet_digests(tmp_path / "b.mp4", "audio") == clips.packet_digests(source, "audio")
    assert notes == []


def test_sound_stays_beside_its_pictures_in_the_file(tmp_path):
    source = clips.write_video(tmp_path / "a.mkv", count=100, audio="aac")
    copy(source, tmp_path / "b.mkv")
    with av.open(str(tmp_path / "b.mkv")) as container:
        times = [float(packet.dts * packet.time_base) for packet in container.demux() if packet.size]
    assert max(max(times[:i]) - times[i] for i in range(1, len(times))) < 0.5


def test_chapters_tags_rotation_and_aspect_are_kept(tmp_path):
    source = clips.write_video(
        tmp_path / "a.mp4",
        rotation=90,
        aspect=Fraction(4, 3),
        chapters=True,
        metadata={"title": "Ünder", "artist": "me"},
    )
    copy(source, tmp_path / "b.mp4")
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.metadata["title"] == "Ünder"
        assert [chapter["metadata"]["title"] for chapter in container.chapters()] == ["one", "two"]
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
        assert next(container.decode(video=0)).rotation == 90


def test_subtitles_attachments_covers_and_dispositions_are_kept(tmp_path):
    source, target = tmp_path / "a.mkv", tmp_path / "b.mkv"
    rich_mkv(clips.write_video(tmp_path / "plain.mkv", count=30, audio="aac"), source)
    notes = copy(source, target)
    assert streams_of(target) == streams_of(source)
    assert clips.packet_digests(target, "subtitle") == clips.packet_digests(source, "subtitle")
    assert notes == []


def test_what_the_container_cannot_hold_is_left_out_and_said(tmp_path):
    source, target = tmp_path / "a.mkv", tmp_path / "b.mp4"
    rich_mkv(clips.write_video(tmp_path / "plain.mkv", count=30, audio="aac"), source)
    notes = copy(source, target)
    assert any("subtitle" in line and "left out" in line for line in notes)
    assert any("attachment" in line and "left out" in line for line in notes)
    assert clips.packet_digests(target, "audio") == clips.packet_digests(source, "audio")


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix", "written"),
    [
        ("libx264", "yuv422p", ".mkv", "h264"),
        ("libx264", "yuv444p10le", ".mp4", "h264"),
        ("libx264", "gray", ".mkv", "h264"),
        ("libx265", "yuv420p", ".mp4", "hevc"),
        ("libvpx-vp9", "yuv420p", ".webm", "vp9"),
        ("ffv1", "yuv422p10le", ".mkv", "ffv1"),
        ("ffv1", "gray16le", ".mkv", "ffv1"),
        ("prores_ks", "yuv422p10le", ".mov", "prores"),
        ("huffyuv", "yuv422p", ".avi", "ffv1"),
        ("mpeg4", "yuv420p", ".avi", "h264"),
        ("mjpeg", "yuvj422p", ".mov", "h264"),
    ],
)
def test_codec_family_and_pixel_format_stay(tmp_path, codec, pix_fmt, suffix, written):
    source = clips.write_video(tmp_path / f"a{suffix}", count=3, codec=codec, pix_fmt=pix_fmt, options={})
    copy(source, tmp_path / f"b{suffix}", Encoding())
    old, new = clips.frames_of(source), clips.frames_of(tmp_path / f"b{suffix}")
    with av.open(str(tmp_path / f"b{suffix}")) as container:
        assert container.streams.video[0].codec_context.name.removeprefix("lib").startswith(written[:3])
    assert new[0].format.name.removeprefix("yuvj") == old[0].format.name.removeprefix("yuvj")
    assert len(new) == len(old)


def test_av1_is_written_as_av1(tmp_path):
    source = clips.write_video(tmp_path / "a.mp4", count=3, width=128, height=96)
    copy(source, tmp_path / "b.mp4", Encoding(codec="av1"))
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert "av1" in container.streams.video[0].codec_context.codec.canonical_name


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "bgr0"])
def test_odd_sizes_stay(tmp_path, pix_fmt):
    source = clips.write_video(tmp_path / "a.mkv", count=3, width=65, height=49, codec="ffv1", pix_fmt=pix_fmt)
    copy(source, tmp_path / "b.mkv")
    copy(source, tmp_path / "c.mp4", Encoding(codec="h264"))
    for name in ("b.mkv", "c.mp4"):
        frame = clips.frames_of(tmp_path / name)[0]
        assert (frame.width, frame.height) == (65, 49)


def test_rgb_video_without_loss_is_the_same(tmp_path):
    source = clips.write_video(tmp_path / "a.mkv", count=3, codec="ffv1", pix_fmt="bgr0")
    copy(source, tmp_path / "b.mkv")
    for old, new in zip(clips.frames_of(source), clips.frames_of(tmp_path / "b.mkv"), strict=True):
        assert (old.to_ndarray(format="rgb24") == new.to_ndarray(format="rgb24")).all()


def test_rgb_in_h264_is_tagged_with_the_matrix_that_was_used(tmp_path):
    source = clips.write_video(tmp_path / "a.mkv", count=3, codec="ffv1", pix_fmt="bgr0")
    notes = copy(source, tmp_path / "b.mp4", Encoding(codec="h264", lossless=True))
    frame = clips.frames_of(tmp_path / "b.mp4")[0]
    assert (frame.format.name, frame.colorspace, frame.color_range) == ("yuv444p", 6, 1)
    assert notes == ["pixel format bgr0 becomes yuv444p, the nearest that libx264 has"]


def test_avi_keeps_its_times_too(tmp_path):
    source = clips.write_video(tmp_path / "a.avi", count=20, codec="mpeg4")
    copy(source, tmp_path / "b.avi", Encoding())
    with FileSource(source) as was, FileSource(tmp_path / "b.avi") as now:
        assert [frame.pts for frame in now] == [frame.pts for frame in was] == list(range(20))


@pytest.mark.parametrize(
    ("suffix", "codec", "notes"),
    [
        (".mov", "prores", ["pixel format yuva444p12le becomes yuva444p10le, the nearest that prores_ks has"]),
        (".mkv", "ffv1", []),
        (".mov", "hevc", ["transparency is lost: yuva444p12le becomes yuv444p12le"]),
        (".mp4", "vp9", ["transparency is lost: yuva444p12le becomes yuv444p"]),
    ],
)
def test_transparency_is_kept_where_it_can_be_or_its_loss_is_said(tmp_path, suffix, codec, notes):
    source = clips.write_video(tmp_path / "a.mov", count=3, codec="prores_ks", pix_fmt="yuva444p10le")
    said = copy(source, tmp_path / f"b{suffix}", Encoding(codec=codec))
    assert [line for line in said if "becomes" in line] == notes


def test_hdr10_metadata_is_kept(tmp_path):
    x265 = "log-level=none:master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    options = {"x265-params": f"{x265}:max-cll=1000,400"}
    source = clips.write_video(
        tmp_path / "a.mp4", count=3, codec="libx265", pix_fmt="yuv420p10le", matrix=9, options=options
    )
    copy(source, tmp_path / "b.mp4", Encoding())
    was, now = (
        {data.type.name: bytes(data) for data in clips.frames_of(path)[0].side_data}
        for path in (source, tmp_path / "b.mp4")
    )
    for kind in ("MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL"):
        assert now[kind] == was[kind]


def test_the_encoder_chooses_its_own_key_frames(tmp_path):
    source = clips.write_video(tmp_path / "a.mkv", count=20, options=clips.LOSSLESS | {"g": "1"})
    copy(source, tmp_path / "b.mkv", Encoding())
    with av.open(str(tmp_path / "b.mkv")) as container:
        assert sum(packet.is_keyframe for packet in container.demux(video=0) if packet.size) == 1


def test_a_size_that_changes_is_scaled_to_the_first_and_said(tmp_path):
    def shrink(frame):
        if frame.seq != 2:
            return frame
        small = frame.origin.frame.reformat(width=32, height=24)
        return replace(frame, pixels=to_rgb(small), origin=Original(small, to_rgb(small)))

    source = clips.write_video(tmp_path / "a.mkv", count=4)
    notes = changed(source, tmp_path / "b.mkv", shrink)
    assert [frame.width for frame in clips.frames_of(tmp_path / "b.mkv")] == [64] * 4
    assert notes == ["the frame size changes: all are scaled to the first, 64x48"]


def test_times_that_go_back_are_moved_on_and_said(tmp_path):
    def restart(frame):
        return replace(frame, pts=frame.pts - 10000) if frame.seq >= 3 else frame

    source = clips.write_video(tmp_path / "a.mkv", count=6)
    notes = changed(source, tmp_path / "b.mkv", restart)
    assert clips.times_of(tmp_path / "b.mkv") == clips.times_of(source)
    assert notes == ["times that go back are moved on"]


def test_nothing_is_seen_under_the_name_before_it_is_whole(tmp_path):
    source = clips.write_video(tmp_path / "a.mp4", count=30)
    seen = []
    with identity() as engine:
        job = VideoJob(source, tmp_path / "b.mp4", LOSSLESS)
        restore_video(job, engine, lambda done, expected: seen.append((tmp_path / "b.mp4").exists()))
    assert seen == [False] * 30
    assert names_in(tmp_path) == ["a.mp4", "b.mp4"]


def test_an_existing_output_is_refused_unless_it_may_be_overwritten(tmp_path):
    source = clips.write_video(tmp_path / "a.mp4", count=3)
    (tmp_path / "b.mp4").write_text("precious")
    assert "must not exist yet" in refusal(source, tmp_path / "b.mp4")
    assert (tmp_path / "b.mp4").read_text() == "precious"
    copy(source, tmp_path / "b.mp4", overwrite=True)
    assert len(clips.frames_of(tmp_path / "b.mp4")) == 3


def test_the_input_is_never_the_output(tmp_path):
    source = clips.write_video(tmp_path / "a.mp4", count=3)
    (tmp_path / "link.mp4").symlink_to(source)
    assert "another file than the input" in refusal(source, source, overwrite=True)
    assert "another file than the input" in refusal(source, tmp_path / "link.mp4", overwrite=True)


def test_a_missing_folder_is_refused(tmp_path):
    source = clips.write_video(tmp_path / "a.mp4", count=3)
    assert "No such file or directory" in refusal(source, tmp_path / "none" / "b.mp4")


def test_a_name_without_a_format_is_refused(tmp_path):
    source = clips.write_video(tmp_path / "a.mp4", count=3)
    assert "got '.xyz'" in refusal(source, tmp_path / "b.xyz")


def test_a_container_that_cannot_hold_the_video_is_refused(tmp_path):
    source = clips.write_video(tmp_path / "a.mp4", count=3)
    assert "cannot hold what libx264 makes" in refusal(source, tmp_path / "b.webm")
    assert "cannot hold what libx264 makes" in refusal(source, tmp_path / "b.gif")


@pytest.mark.parametrize("codec", ["nonsense", "aac"])
def test_a_codec_that_is_none_is_refused(tmp_path, codec):
    source = clips.write_video(tmp_path / "a.mp4", count=3)
    with pytest.raises(SinkError, match=f"got '{codec}'"):
        copy(source, tmp_path / "b.mp4", Encoding(codec=codec))
    assert names_in(tmp_path) == ["a.mp4"]


def test_a_preset_that_is_none_is_refused(tmp_path):
    source = clips.write_video(tmp_path / "a.mp4", count=3)
    assert "cannot be written" in refusal(source, tmp_path / "b.mp4", Encoding(preset="nonsense"))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, suffix):
    source = clips.write_video(tmp_path / f"a{suffix}", count=30, audio="aac")
    with clips.full_disk(8192):
        assert "cannot be written" in refusal(source, tmp_path / f"b{suffix}")


def rich_mkv(source, target):
    """The streams of `source`, and subtitles, an attachment and a cover."""
    subtitles = target.with_name("a.srt")
    subtitles.write_text("1\n00:00:00,000 --> 00:00:00,500\nHello\n\n2\n00:00:00,600 --> 00:00:01,000\nWorld\n")
    with av.open(str(source)) as video, av.open(str(subtitles)) as text, av.open(str(target), "w") as output:
        streams = {stream: output.add_stream_from_template(stream) for stream in (*video.streams, *text.streams)}
        streams[video.streams.audio[0]].metadata["language"] = "deu"
        streams[text.streams[0]].disposition = av.stream.Disposition.forced
        cover = output.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        cover.metadata.update(filename="cover.jpg", mimetype="image/jpeg")
        output.add_attachment("notes.txt", "text/plain", b"some notes")
        for picture in clips.video_frames(1, 64, 48, "yuvj420p"):
            output.mux(cover.encode(picture))
        for container in (video, text):
            for packet in container.demux():
                if packet.size:
                    packet.stream = streams[packet.stream]
                    output.mux(packet)


def streams_of(path):
    with av.open(str(path)) as container:
        return [
            (
                stream.type,
                stream.codec_context.name if stream.codec_context else stream.data,
                stream.language,
                int(stream.disposition),
                stream.metadata.get("filename"),
            )
            for stream in container.streams
        ]


def test_the_hardware_is_asked_only_for_what_it_encodes(tmp_path):
    source = clips.write_video(tmp_path / "a.mkv", count=3)
    with pytest.raises(SinkError, match="an NVIDIA GPU encodes h264, hevc and av1, got ffv1"):
        copy(source, tmp_path / "b.mkv", Encoding("ffv1", hardware=True))
    assert names_in(tmp_path) == ["a.mkv"]


@pytest.mark.skipif(why_no_gpu() is None, reason="there is an NVIDIA GPU")
def test_where_no_gpu_is_the_hardware_cannot_encode_and_says_so(tmp_path):
    source = clips.write_video(tmp_path / "a.mkv", count=3)
    with pytest.raises(SinkError, match="encoding by the hardware needs an NVIDIA GPU: "):
        copy(source, tmp_path / "b.mkv", Encoding(hardware=True))
    assert names_in(tmp_path) == ["a.mkv"]


@pytest.mark.gpu
@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("lossless", [False, True])
def test_the_hardware_encodes(tmp_path, codec, lossless):
    source = clips.write_video(tmp_path / "a.mkv", count=30, width=256, height=192)
    copy(source, tmp_path / "b.mkv", Encoding(codec, hardware=True, lossless=lossless))
    assert clips.times_of(tmp_path / "b.mkv") == clips.times_of(source)
    most = 0 if lossless else 20
    for old, new in zip(clips.frames_of(source), clips.frames_of(tmp_path / "b.mkv"), strict=True):
        assert np.abs(clips.planes_of(old)[0] - clips.planes_of(new)[0]).max() <= most
