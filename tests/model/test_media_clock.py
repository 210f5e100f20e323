"""Audio and video of one file on the container's clock, held against a plain decode from the start."""

import functools
import itertools

import av
import numpy as np
import pytest
from media_files import CONTAINERS, write_clip

from vaemotionllm import InputError
from vaemotionllm.model.media import iter_frames, load_audio, load_audio_and_video, load_video

# These two store no time stamps at which a track begins.
WITHOUT_OFFSETS = ("avi", "mxf")
PARTS = ((None, None), (0.5, 1.5), (1.3, 1.7), (2.02, 2.9), (1.9, None))


def plain_decode(path):
    """(time on the container's clock, pixels) of every frame, without a seek."""
    with av.open(str(path)) as container:
        zero = max((container.start_time or 0) / 1e6, 0.0)
        return [(frame.time - zero, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


@pytest.mark.parametrize(
    ("container", "codec", "audio"),
    [(name, codec, audio) for name, (codecs, a) in CONTAINERS.items() for codec in codecs for audio in (None, a)],
)
def test_frames_are_those_of_a_plain_decode_at_their_times(tmp_path, container, codec, audio):
    path = write_clip(tmp_path / "clip", container, codec, audio, seconds=3.0)
    every = plain_decode(path)
    times_s = np.array([time_s for time_s, _ in every])
    for start_s, end_s in PARTS:
        frames, metadata = load_video(path, 6, start_s, end_s)
        for i, frame in enumerate(frames):
            at_s = (start_s or 0.0) + (i + 0.5) * metadata.duration_s / 6
            shown = max(int((times_s <= at_s + 5e-4).sum()) - 1, 0)
            np.testing.assert_array_equal(frame, every[shown][1], err_msg=f"{start_s} {end_s} {i}")
    np.testing.assert_array_equal(load_video(path.read_bytes(), 6, 1.3, 1.7)[0], load_video(path, 6, 1.3, 1.7)[0])


def test_frames_of_avi_come_in_the_order_in_which_they_are_shown(tmp_path):
    """AVI stores no time of display: FFmpeg guesses it, and wrong for pyramids of B-frames."""
    pyramid = {"bf": "3", "x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0:b-adapt=0"}
    path = write_clip(tmp_path / "a.avi", "avi", "libx264", seconds=3.0, codec_options=pyramid)
    every = [pixels for _, pixels in plain_decode(path)]
    for count in (9, 60):
        shown = [[np.array_equal(one, frame) for one in every].index(True) for frame in load_video(path, count)[0]]
        wanted = (np.arange(count) + 0.5) * len(every) / count
        assert np.abs(shown - wanted).max() <= 2, shown


@pytest.mark.parametrize("container", [name for name in CONTAINERS if name not in WITHOUT_OFFSETS])
def test_a_flash_and_a_beep_are_together(tmp_path, container):
    codecs, audio = CONTAINERS[container]
    for video_start_s, audio_start_s in itertools.product((0.0, 0.48, 1.52), repeat=2):
        path = write_clip(
            tmp_path / "clip", container, codecs[0], audio, 3.0, flash_s=2.2, gop=25,
            video_start_s=video_start_s, audio_start_s=audio_start_s,
        )  # fmt: skip
        earliest_s = min(video_start_s, audio_start_s)
        for start_s, end_s in ((None, None), (0.6, 2.9 - earliest_s), (1.2 - earliest_s / 2, 2.6 - earliest_s)):
            waveform, frames, metadata = load_audio_and_video(path, None, start_s=start_s, end_s=end_s)
            np.testing.assert_array_equal(waveform, load_audio(path, start_s=start_s, end_s=end_s))
            beep_s = np.flatnonzero(np.abs(waveform) > 0.1)[0] / 16_000
            shown = list(iter_frames(path, start_s or 0.0, end_s))
            np.testing.assert_array_equal(frames, np.stack([pixels for _, pixels in shown]))
            flash_s = shown[int(frames.mean((1, 2, 3)).argmax())][0]
            assert abs(flash_s - beep_s) <= 0.04, (video_start_s, audio_start_s, start_s)
            assert abs(flash_s + (start_s or 0.0) + earliest_s - 2.2) <= 0.06


def test_a_late_track_is_silent_or_shows_its_first_frame(tmp_path):
    late = functools.partial(write_clip, container="matroska", codec="libx264", audio_codec="aac", seconds=2.0)
    waveform = load_audio(late(tmp_path / "audio.mkv", audio_start_s=1.0))
    assert len(waveform) / 16_000 == pytest.approx(3.0, abs=0.1)
    assert np.abs(waveform[:15_000]).max() == 0 < np.abs(waveform[17_000:]).max()
    frames, metadata = load_video(late(tmp_path / "video.mkv", video_start_s=1.0), 6)
    assert metadata.duration_s == pytest.approx(3.0, abs=0.05)
    np.testing.assert_array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[1], frames[3])
    np.testing.assert_array_equal(load_video(tmp_path / "video.mkv", 2, 0.0, 0.5)[0][1], frames[0])


def test_frames_of_a_variable_rate_are_chosen_by_time(tmp_path):
    still = [0.0, *(8 + i / 30 for i in range(60))]  # 8 s of one frame, then 2 s of 30 a second
    path = write_clip(tmp_path / "vfr.mp4", "mp4", "libx264", times_s=still, gop=250)
    frames, metadata = load_video(path, 10)
    assert metadata.duration_s == pytest.approx(10.0, abs=0.1)
    assert all(np.array_equal(frame, frames[0]) for frame in frames[:8]) and not np.array_equal(frames[8], frames[0])
    slides = write_clip(tmp_path / "slides.mp4", "mp4", "libx264", times_s=[0.0, 5.0, 10.0, 15.0])
    every = [pixels for _, pixels in plain_decode(slides)]
    np.testing.assert_array_equal(load_video(slides, 2, 6.0, 9.0)[0], np.stack([every[1]] * 2))
    np.testing.assert_array_equal(load_video(slides, 2, 9.0, 11.0)[0], np.stack([every[1], every[2]]))


def test_one_image_is_shown_throughout(tmp_path):
    path = write_clip(tmp_path / "cover.mkv", "matroska", "libx264", "aac", seconds=4.0, times_s=[0.0])
    frames, metadata = load_video(path, 4)
    assert metadata.duration_s == pytest.approx(4.0, abs=0.1) and all(np.array_equal(f, frames[0]) for f in frames)
    np.testing.assert_array_equal(load_video(path, 1, 2.0, 3.0)[0][0], frames[0])


def test_a_part_behind_the_end_is_refused(tmp_path):
    path = write_clip(tmp_path / "a.mp4", "mp4", "libx264", "aac", seconds=2.0)
    for load in (functools.partial(load_video, num_frames=2), load_audio):
        with pytest.raises(InputError, match="no frame between 5|0 s long"):
            load(path, start_s=5.0, end_s=6.0)
