"""Files of the wild: by content, to their end, within limits, and nothing changed in silence."""

import contextlib
import io
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from media_files import tone, write_clip, write_png, write_video, write_wav
from PIL import Image, ImageOps

from vaemotionllm import InputError
from vaemotionllm.model.media import end_of_track_s, iter_frames, load_audio, load_video, tracks_of
from vaemotionllm.model.media_files import limits
from vaemotionllm.model.media_images import load_image


def encoded(wave, rate_hz, format, codec, bit_rate=None, options=None, layout="mono"):
    """The bytes of a file of a waveform (samples,) or (channels, samples)."""
    buffer, wave = io.BytesIO(), np.atleast_2d(wave).astype(np.float32)
    with av.open(buffer, "w", format=format, options=options or {}) as file:
        stream = file.add_stream(codec, rate=rate_hz, layout=layout)
        if bit_rate:
            stream.bit_rate = bit_rate
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(format=stream.codec_context.format.name, layout=layout, rate=rate_hz)
        for begin in range(0, wave.shape[1] - size + 1, size):
            block = np.ascontiguousarray(wave[:, begin : begin + size])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate_hz, begin
            for part in resampler.resample(frame):
                file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def seconds(content, **options):
    return len(load_audio(content, **options)) / 16_000


NO_XING = {"write_xing": "0", "id3v2_version": "0"}


# ---- whole files


def test_files_without_a_length_or_with_several_are_read_to_their_end():
    quiet_then_loud = np.concatenate([0 * tone(10.0, 48_000), tone(20.0, 48_000)])
    assert seconds(encoded(quiet_then_loud, 48_000, "mp3", "libmp3lame", options=NO_XING)) == pytest.approx(
        30, abs=0.1
    )
    one = encoded(tone(3.0, 44_100), 44_100, "mp3", "libmp3lame")
    assert seconds(one) == pytest.approx(3.0, abs=0.1)
    assert seconds(one + one) == pytest.approx(6.0, abs=0.2)
    assert seconds(one + b"TAG" + bytes(125) + one) == pytest.approx(6.0, abs=0.2)
    for format, codec, rate_hz in (("adts", "aac", 44_100), ("ogg", "libopus", 48_000), ("ogg", "libvorbis", 44_100)):
        content = encoded(tone(2.0, rate_hz), rate_hz, format, codec)
        assert seconds(content) == pytest.approx(2.0, abs=0.15), codec
        assert seconds(content + content) == pytest.approx(4.0, abs=0.3), codec
        part = load_audio(content + content, start_s=2.5, end_s=3.5)
        assert len(part) == 16_000 and np.abs(part).max() > 0.2
    with pytest.raises(InputError, match="30.0 s long, more than max_audio_s = 20"):
        load_audio(encoded(quiet_then_loud, 48_000, "mp3", "libmp3lame", options=NO_XING), max_s=20)


def test_joined_files_of_other_rates_and_channels_lose_nothing():
    for format, codec, off_s in (("adts", "aac", 1e-3), ("ogg", "libvorbis", 4e-3)):
        ones = [
            encoded(tone(4.0, 48_000, 300), 48_000, format, codec),
            encoded(tone(4.0, 44_100, 900, channels=2).T, 44_100, format, codec, layout="stereo"),
        ]
        for one, other in (ones, ones[::-1]):
            lengths = [seconds(one), seconds(other), seconds(one + other)]
            assert lengths[2] == pytest.approx(lengths[0] + lengths[1], abs=off_s), codec
            joined = load_audio(one + other)
            alone = load_audio(other)  # and no noise of a decoder that has the headers of the first
            assert np.std(joined[-32_000:]) == pytest.approx(np.std(alone[-32_000:]), rel=0.02)
            part = load_audio(one + other, start_s=5.5, end_s=6.5)
            np.testing.assert_allclose(part[100:-100], joined[88_100:103_900], atol=0.03)


def with_tag(content, size=200_000):
    """A file behind an ID3 tag of an image, in which frames of MPEG audio seem to begin."""
    body = b"\0image/png\0\3\0" + saved(Image.new("RGB", (64, 48), "red"), "PNG")
    body += (b"\xff\xfb\x90\x64" + bytes(413)) * (size // 417)
    frame = b"APIC" + struct.pack(">I", len(body)) + bytes(2) + body
    return b"ID3\3\0\0" + bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0)) + frame + content


@pytest.mark.parametrize(("format", "codec"), [("mp3", "libmp3lame"), ("adts", "aac"), ("flac", "flac")])
def test_a_tag_of_any_size_is_passed_over(format, codec):
    content = encoded(
        tone(4.0, 44_100), 44_100, format, codec, options={"id3v2_version": "0"} if format == "mp3" else {}
    )
    for tagged in (with_tag(content, 1000), with_tag(content), with_tag(with_tag(content))):
        np.testing.assert_array_equal(load_audio(tagged), load_audio(content))
    if format == "mp3":
        with pytest.raises(InputError, match="truncated"):
            load_audio(with_tag(content)[: -len(content) // 2])
        frames, metadata = load_video(with_tag(content), 3)  # its cover
        assert metadata.duration_s == pytest.approx(4.0, abs=0.1) and (frames[:, 24, 32] >= [[250, 0, 0]]).all()


def test_tags_behind_and_between_mp3_are_passed_over_and_damage_is_not():
    one = encoded(tone(4.0, 44_100), 44_100, "mp3", "libmp3lame")
    item = np.random.default_rng(0).integers(0, 256, 20_000, dtype=np.uint8).tobytes()
    ends = [
        b"APETAGEX" + struct.pack("<5I", 2000, 20_032, 1, flags, 0) + bytes(4) for flags in (0xA0000000, 0x80000000)
    ]
    for tag in (item.join(ends), b"LYRICSBEGIN" + b"x" * 5000 + b"005000LYRICS200TAG" + bytes(125), bytes(5000)):
        assert seconds(one + tag) == pytest.approx(4.0, abs=0.05)
        assert seconds(one + tag + one) == pytest.approx(8.0, abs=0.1)
    with pytest.raises(InputError):
        load_audio(one[:10_000] + bytes(10_000) + one[20_000:])


@pytest.mark.parametrize("codec", ["adpcm_ms", "adpcm_ima_wav", "pcm_s24le"])
def test_a_part_of_compressed_wav_equals_the_slice(codec):
    content = encoded(np.random.default_rng(0).normal(0, 0.1, 180_000), 44_100, "wav", codec)
    whole = load_audio(content, sampling_rate=44_100)
    part = load_audio(content, sampling_rate=44_100, start_s=3.0, end_s=3.5)
    np.testing.assert_allclose(part, whole[132_300:154_350], atol=1e-4)


def test_a_clock_that_goes_round_loses_nothing(tmp_path):
    make = lambda name, **times: write_clip(tmp_path / name, "mpegts", "libx264", "aac", **times)  # noqa: E731
    usual, late_s = make("a.ts"), 95_441.2  # of 95,443.7 s, 2^33 ticks of 90 kHz
    wrapped = make("b.ts", video_start_s=late_s, audio_start_s=late_s)
    np.testing.assert_array_equal(load_video(wrapped, None)[0], load_video(usual, None)[0])
    np.testing.assert_array_equal(load_video(wrapped, 5, 1.3, 1.9)[0], load_video(usual, 5, 1.3, 1.9)[0])
    assert len(load_audio(wrapped)) == pytest.approx(len(load_audio(usual)), abs=2)


@pytest.mark.parametrize(
    ("container", "codec"), [("mpegts", "libx264"), ("mpeg", "mpeg1video"), ("matroska", "mpeg4")]
)
def test_joined_videos_whose_clocks_overlap_are_refused(tmp_path, container, codec):
    content = write_clip(tmp_path / "a", container, codec).read_bytes()
    assert load_video(content, 4, 0.5, 1.5)[0].shape == (4, 48, 64, 3)
    for read in (lambda file: load_video(file, 4), lambda file: list(iter_frames(file))):
        with pytest.raises(InputError, match="set again at 1.* joined"):
            read(content + content)


def test_sizes_of_recorders_promise_nothing_and_those_of_files_do(tmp_path):
    content = write_wav(tmp_path / "a.wav", 1.0).read_bytes()
    at = content.index(b"data") + 4
    for size in (0, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFFF, 0xFFFFFFFF - 36):
        assert seconds(content[:at] + struct.pack("<I", size) + content[at + 4 :]) == 1.0
    # Behind a chunk of 6 kB, beyond what is read of the head.
    behind = content[:12] + b"LIST" + struct.pack("<I", 90_000) + bytes(90_000) + content[12:]
    assert seconds(behind) == 1.0
    for cut in (behind[:-9_000], content[:-9_000]):
        with pytest.raises(InputError, match="truncated, the header promises"):
            load_audio(cut)
    whole = encoded(tone(4.0, 44_100), 44_100, "mp3", "libmp3lame")
    with pytest.raises(InputError, match="truncated"):  # its first frame counts the others
        load_audio(whole[: len(whole) // 2])
    assert seconds(encoded(tone(4.0, 44_100), 44_100, "mp3", "libmp3lame", options=NO_XING)[:16_000]) > 1.5


@pytest.mark.parametrize("name", ["a.mp3", "a.wav", "a.txt", "a", "a?b#c %41.mp4", "concat:a|b.mp4"])
def test_the_content_decides_and_not_the_name(tmp_path, name):
    content = encoded(tone(1.0, 48_000), 48_000, "mp4", "aac")
    path = tmp_path / name
    path.write_bytes(content)
    np.testing.assert_array_equal(load_audio(path), load_audio(content))
    picture = write_png(tmp_path / "b.png").read_bytes()
    path.write_bytes(picture)
    np.testing.assert_array_equal(np.asarray(load_image(path)), np.asarray(load_image(picture)))


@pytest.mark.parametrize("format", ["WAV", "WAVEX", "RF64", "W64", "AIFF", "CAF", "AU"])
def test_a_cut_file_of_samples_is_truncated(format):
    buffer, wave = io.BytesIO(), tone(2.0, 22_050, channels=2)
    soundfile.write(buffer, wave, 22_050, format=format, subtype="PCM_16")
    content = buffer.getvalue()
    np.testing.assert_allclose(load_audio(content, 22_050), wave.mean(1), atol=1e-4)
    with pytest.raises(InputError, match="truncated"):
        load_audio(content[: -len(wave) * 2])  # half of the samples, to the byte


def test_a_cut_avi_is_truncated(tmp_path):
    content = write_clip(tmp_path / "a", "avi", "mpeg4", "libmp3lame", seconds=3.0).read_bytes()
    assert load_video(content, 2)[1].duration_s == pytest.approx(3.0, abs=0.1)
    with pytest.raises(InputError, match="truncated"):
        load_video(content[: int(len(content) * 0.7)], 2)


def test_only_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, words in ((tmp_path, "a folder"), (tmp_path / "pipe", "a pipe"), ("/dev/zero", "a device")):
        with pytest.raises(InputError, match=words):
            load_audio(path)
    with pytest.raises(InputError, match="not found"):
        load_audio(tmp_path / "loop")


def test_a_name_that_is_not_utf_8(tmp_path):
    path = Path(str(tmp_path) + "/caf\udce9.mp4")
    write_video(tmp_path / "a.mp4", 1.0).rename(path)
    np.testing.assert_array_equal(load_audio(path), load_audio(path.read_bytes()))
    assert load_video(path, 2)[0].shape == (2, 56, 56, 3)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"<svg/>", "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"\xc5\xd0\xd3\xc6" + bytes(40), "EPS"),
        (b"#EXTM3U\nfile.mp4\n", "m3u8"),
        (b"ffconcat version 1.0\nfile 'a.mp4'\n", "ffconcat"),
        (b"\xef\xbb\xbf \n<!DOCTYPE html><html></html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"v=0\no=- 0 0 IN IP4 127.0.0.1\n", "SDP"),
        (b"PK\x03\x04" + bytes(40), "ZIP"),
        (b"not found\n", "a text file"),
        (b"RIFX\0\0\1\0WAVEfmt " + bytes(40), "big-endian"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(40), "HEIC"),
        (bytes(range(256)) * 4, "no known media format"),
    ],
)
def test_what_is_no_media_file_is_named(tmp_path, content, kind):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    for source in (path, content):
        for load in (load_audio, lambda file: load_video(file, 2), load_image, tracks_of):
            with pytest.raises(InputError, match=f"{kind}.*allowed are"):
                load(source)


@pytest.mark.parametrize("content", [b"\x0bw", b"ID3", b"ID3\4\0\0\x7f\x7f\x7f\x7f", b"RIFF", b"OggS"])
def test_a_head_alone_is_refused(content):
    for load in (load_audio, load_image):
        with pytest.raises(InputError, match="embedded bytes"):
            load(content)
    with contextlib.suppress(InputError):
        assert end_of_track_s(content, "audio") is None


def test_an_image_is_no_video_and_a_video_no_image(tmp_path):
    with pytest.raises(InputError, match="a still image; give it as `image`"):
        load_video(write_png(tmp_path / "a.png"), 2)
    with pytest.raises(InputError, match="no image but audio or video"):
        load_image(write_video(tmp_path / "a.mp4"))


def test_bytes_of_formats_whose_tracks_are_found_late_do_not_end_the_interpreter(tmp_path):
    script = (
        "import sys; from vaemotionllm.model.media import load_audio, load_video\n"
        "for name in sys.argv[1:]:\n"
        "    content = open(name, 'rb').read(); print(len(load_audio(content)), load_video(content, 2)[0].shape)"
    )
    files = [
        write_clip(tmp_path / "a", "flv", "flv", "aac"),
        write_clip(tmp_path / "b", "mpeg", "mpeg1video", "mp2"),
    ]
    result = subprocess.run([sys.executable, "-c", script, *files], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.count("(2, 48, 64, 3)") == 2, result.stderr


def test_of_several_tracks_the_default_is_taken():
    for default in (0, 1):
        buffer, packets = io.BytesIO(), []
        with av.open(buffer, "w", format="matroska") as file:
            streams = [file.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in range(2)]
            for i, stream in enumerate(streams):
                stream.disposition = av.stream.Disposition.default.value if i == default else 0
                wave = (tone(1.0, pitch_hz=300 * (i + 1)) * 32767).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
                frame.sample_rate = 16_000
                packets += stream.encode(frame)
            file.mux(packets)
        assert np.abs(np.fft.rfft(load_audio(buffer.getvalue()))).argmax() == 300 * (default + 1)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_a_video_is_turned_and_mirrored_as_its_container_says(tmp_path, turns, mirrored):
    path = write_video(tmp_path / "a.mp4", 0.5, sound=False)
    plain, content = load_video(path, 2)[0], path.read_bytes()
    a, b, c, d = [(1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0)][turns]  # x' = ax + cy, y' = bx + dy
    if mirrored:  # left and right, before it is turned
        a, b = -a, -b
    at = content.index(b"tkhd") + 44
    matrix = struct.pack(">5i", a << 16, b << 16, 0, c << 16, d << 16)
    frames, _ = load_video(content[:at] + matrix + content[at + len(matrix) :], 2)
    np.testing.assert_array_equal(frames, np.rot90(plain[:, :, ::-1] if mirrored else plain, turns, (1, 2)))


# ---- rates, channels, levels


@pytest.mark.parametrize(
    "rate_hz", [1000, 8001, 11_127, 15_999, 22_254, 44_056, 44_099, 47_999, 96_000, 192_000, 999_983]
)
def test_any_rate_is_resampled_within_bounds(tmp_path, rate_hz):
    path = tmp_path / "a.wav"
    pitch_hz = 0.2 * min(rate_hz, 16_000)
    soundfile.write(path, tone(2.0, rate_hz, pitch_hz), rate_hz)
    tracemalloc.start()
    wave = load_audio(path)
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()
    assert abs(len(wave) - 32_000) <= 16
    expected = tone(2.0, 16_000, pitch_hz)[: len(wave)]
    # Away from the ends, where the filter sees silence.
    assert np.abs(wave[: len(expected)] - expected)[500:-500].max() < 4e-3


def test_channels_that_cancel_are_not_silence(tmp_path, caplog):
    wave = tone(1.0, 44_100)
    soundfile.write(tmp_path / "a.wav", np.stack([wave, -wave], 1), 44_100)
    mono = load_audio(tmp_path / "a.wav", sampling_rate=44_100)
    np.testing.assert_allclose(mono, wave, atol=1e-3)
    assert "cancel" in caplog.text


def test_surround_is_mixed_by_the_usual_shares(tmp_path):
    rate_hz, names = 48_000, ["FL", "FR", "FC", "LFE", "BL", "BR"]
    peaks = {}
    for i, name in enumerate(names):
        channels = np.zeros((6, rate_hz), np.float32)
        channels[i] = tone(1.0, rate_hz)
        peaks[name] = np.abs(load_audio(encoded(channels, rate_hz, "matroska", "flac", layout="5.1"))).max()
    assert peaks["LFE"] == 0
    assert peaks["FL"] == pytest.approx(peaks["FR"])
    assert peaks["FC"] / peaks["FL"] == pytest.approx(2**0.5, rel=0.01)
    assert peaks["BL"] / peaks["FL"] == pytest.approx(0.5**0.5, rel=0.01)


def test_next_to_no_audio_and_floats_on_the_scale_of_integers(tmp_path):
    soundfile.write(tmp_path / "one.wav", np.zeros(1), 44_100)
    with pytest.raises(InputError, match="at least 0.025 s"):
        load_audio(tmp_path / "one.wav")
    soundfile.write(tmp_path / "scale.wav", tone(1.0) * 20_000, 16_000, subtype="FLOAT")
    with pytest.raises(InputError, match="scale.wav: samples reach 8000"):
        load_audio(tmp_path / "scale.wav")


def saved(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def test_levels_of_images_are_scaled_by_their_depth():
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (8, 1))
    for image, format in (
        (Image.fromarray((ramp * 65535).astype(np.uint16)), "PNG"),
        (Image.fromarray((ramp * 65535).astype(np.uint16)), "TIFF"),
        (Image.fromarray(ramp), "TIFF"),
    ):
        np.testing.assert_allclose(np.asarray(load_image(saved(image, format)))[..., 1], ramp * 255, atol=1)
    with pytest.raises(InputError, match="mode F go from 0 to 255; allowed is 0 to 1"):
        load_image(Image.fromarray(ramp * 255))


def test_what_is_transparent_is_white_and_cmyk_is_converted():
    drawing = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    drawing.putpixel((1, 1), (0, 0, 0, 255))
    for image in (drawing, drawing.convert("LA"), drawing.quantize()):
        pixels = np.asarray(load_image(saved(image, "PNG")))
        assert pixels[1, 1].max() <= 8 and pixels[5, 5].min() >= 247, image.mode
    red = load_image(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert red.mode == "RGB" and red.getpixel((4, 4))[0] > 200 > 60 > red.getpixel((4, 4))[1]


@pytest.mark.parametrize("format", ["WEBP", "GIF", "PNG"])
def test_images_that_move_are_an_image_or_a_video(format):
    shades = [Image.new("RGB", (16, 16), (60 * i, 60 * i, 60 * i)) for i in range(4)]
    content = saved(shades[0], format, save_all=True, append_images=shades[1:], duration=[100, 100, 700, 100])
    assert np.asarray(load_image(content)).max() < 8
    assert tracks_of(content).image and tracks_of(content).animated
    frames, metadata = load_video(content, 5)
    assert metadata.duration_s == pytest.approx(1.0)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), [60, 120, 120, 120, 180], atol=4)  # at 0.1, 0.3, 0.5, ...


def test_only_what_moves_is_a_video():
    pages = [Image.new("RGB", (16, 16), shade) for shade in ("black", "red", "white")]
    document = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert load_image(document).getpixel((0, 0)) == (0, 0, 0) and not tracks_of(document).animated
    with pytest.raises(InputError, match="a still image"):
        load_video(document, 2)
    content = saved(pages[0], "PNG", save_all=True, default_image=True, append_images=pages[1:], duration=500)
    frames, metadata = load_video(content, 2)  # without the image for who cannot show it moving
    assert metadata.duration_s == 1.0 and frames[:, 0, 0].tolist() == [[255, 0, 0], [255, 255, 255]]


def test_exif_turns_images_whatever_else_it_holds():
    image = Image.fromarray(np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x112] = orientation
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(saved(image, "PNG", exif=exif))))
        np.testing.assert_array_equal(np.asarray(load_image(saved(image, "PNG", exif=exif))), np.asarray(expected))
    moving = saved(image, "WEBP", save_all=True, append_images=[image.rotate(180)], exif=exif)
    assert load_video(moving, 2)[0].shape == (2, 64, 48, 3)
    # ResolutionUnit is a short; here it is a long, which PIL reads and cannot write.
    wrong = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIIHHII", 2, 0x112, 3, 1, 6, 0x128, 4, 1, 70_000) + bytes(4)
    content = saved(image, "JPEG")
    assert load_image(content[:2] + b"\xff\xe1" + struct.pack(">H", len(wrong) + 2) + wrong + content[2:]).width == 48


def test_transparent_levels_of_16_bits_are_white():
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + struct.pack(">8H", *[0, 1, 257, 65535] * 2) for _ in range(8))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 0, 0, 0, 0)) + chunk(b"tRNS", struct.pack(">H", 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.asarray(load_image(content))[0, :4, 0].tolist() == [255, 0, 1, 255]


def test_what_is_transparent_in_a_video_is_white():
    buffer, pixels = io.BytesIO(), np.zeros((48, 64, 4), np.uint8)
    pixels[:24] = 200, 0, 0, 255
    with av.open(buffer, "w", format="mov") as file:
        stream = file.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgba"
        for _ in range(3):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")))
        file.mux(stream.encode(None))
    frames, _ = load_video(buffer.getvalue(), 2)
    assert frames[1, 0, 0].tolist() == [200, 0, 0] and frames[1, 40, 0].tolist() == [255, 255, 255]


# ---- limits


def test_pixels_bytes_and_time_are_bounded(tmp_path):
    video, image = write_video(tmp_path / "a.mp4", 2.0), write_png(tmp_path / "a.png")
    moving = saved(Image.new("RGB", (56, 56)), "GIF", save_all=True, append_images=[Image.new("RGB", (56, 56), "red")])
    with limits(max_pixels=56 * 56 - 1), pytest.raises(InputError, match="56 x 56 pixels"):
        load_video(moving, 1)
    with limits(max_pixels=56 * 56 - 1):
        for load in (lambda: load_image(image), lambda: load_video(video, 2)):
            with pytest.raises(InputError, match=r"a\.(png|mp4): 56 x 56 pixels, more than max_pixels"):
                load()
    with limits(max_bytes=3 * 56 * 56 * 10), pytest.raises(InputError, match="20 frames of 56 x 56"):
        load_video(video, None)
    with pytest.raises(InputError, match="frames of 56 x 56"):
        load_video(video, None, fps=1e12)
    with limits(max_s=1.0):
        time.sleep(1.1)
        with limits(max_pixels=10**6), pytest.raises(InputError, match="decoding took longer"):
            load_audio(video)
    with limits(max_s=0.0):
        for load in (lambda: load_audio(video), lambda: load_video(video, 2)):
            with pytest.raises(InputError, match="a.mp4: decoding took longer"):
                load()
    assert load_image(image).size == (56, 56)
