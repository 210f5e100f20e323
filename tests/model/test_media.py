import numpy as np
import pytest
import soundfile
from media_files import picture, tone, write_png, write_video, write_wav

from vaemotionllm import InputError
from vaemotionllm.model.media import end_of_track_s, load_audio, load_video
from vaemotionllm.model.media_images import load_image


def pitch_hz(waveform, rate_hz=16_000):
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return np.fft.rfftfreq(len(waveform), 1 / rate_hz)[spectrum.argmax()]


def test_mono_wav_is_read_as_written(tmp_path):
    path = write_wav(tmp_path / "a.wav", 0.5)
    wave = load_audio(path)
    assert wave.dtype == np.float32 and wave.shape == (8000,)
    np.testing.assert_allclose(wave, tone(0.5), atol=1e-4)


def test_stereo_48_khz_is_downmixed_and_resampled(tmp_path):
    path = write_wav(tmp_path / "a.wav", 1.0, rate_hz=48_000, channels=2)
    wave = load_audio(path)
    assert wave.shape == (16_000,)
    mixed = tone(1.0, 48_000, channels=2).mean(axis=1)
    # At 16 kHz every third sample of the band-limited mixture is kept.
    np.testing.assert_allclose(wave[200:-200], mixed[::3][200:-200], atol=5e-3)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_compressed_formats(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(1.0, 44_100, 500.0), 44_100)
    wave = load_audio(path)
    assert abs(len(wave) - 16_000) < 1200
    assert abs(pitch_hz(wave) - 500) < 3


def test_sound_of_an_mp4_and_bytes(tmp_path):
    path = write_video(tmp_path / "a.mp4", 1.0, pitch_hz=700.0)
    wave = load_audio(path)
    assert abs(len(wave) - 16_000) < 2500 and abs(pitch_hz(wave) - 700) < 3
    np.testing.assert_array_equal(wave, load_audio(path.read_bytes()))


@pytest.mark.parametrize("kind", ["wav", "mp4"])
def test_a_part_equals_the_slice(tmp_path, kind):
    path = write_wav(tmp_path / "a.wav", 3.0) if kind == "wav" else write_video(tmp_path / "a.mp4", 3.0)
    whole = load_audio(path)
    part = load_audio(path, start_s=1.5, end_s=2.25)
    assert part.shape == (12_000,)
    np.testing.assert_allclose(part, whole[24_000:36_000], atol=1e-3)


def test_image_is_rgb_and_accepts_bytes(tmp_path):
    path = write_png(tmp_path / "a.png", 40, seed=3)
    np.testing.assert_array_equal(np.asarray(load_image(path)), picture(40, 3))
    np.testing.assert_array_equal(np.asarray(load_image(path.read_bytes())), picture(40, 3))


@pytest.mark.parametrize("gop", [1, 5, 250])
@pytest.mark.parametrize("num_frames", [1, 4, 7, 40])
def test_frames_equal_those_of_a_plain_decode(tmp_path, gop, num_frames):
    import av

    path = write_video(tmp_path / "a.mp4", 2.0, gop=gop)
    with av.open(str(path)) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    frames, metadata = load_video(path, num_frames)
    wanted = [int((i + 0.5) * len(every) / num_frames) for i in range(num_frames)]
    assert list(metadata.indices) == wanted and metadata.fps == 10 and metadata.duration_s == 2.0
    np.testing.assert_array_equal(frames, np.stack([every[i] for i in wanted]))


def test_a_part_of_a_video(tmp_path):
    path = write_video(tmp_path / "a.mp4", 2.0)
    whole, _ = load_video(path, 20)
    part, metadata = load_video(path, 5, start_s=1.0, end_s=1.5)
    np.testing.assert_array_equal(part, whole[10:15])
    assert metadata.duration_s == 0.5 and list(metadata.indices) == [0, 1, 2, 3, 4]


def damaged(path, keep=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


@pytest.mark.parametrize(
    ("make", "load", "words"),
    [
        (lambda d: d / "none.wav", load_audio, ["not found"]),
        (lambda d: write_wav(d / "a.wav", 0.0), load_audio, ["0 s"]),
        (lambda d: write_wav(d / "a.wav", 600.0, rate_hz=8000), load_audio, ["600.0 s", "max_audio_s", "300"]),
        (lambda d: write_video(d / "a.mp4", sound=False), load_audio, ["no audio track"]),
        (lambda d: damaged(write_wav(d / "a.wav", 1.0)), load_audio, ["truncated"]),
        (lambda d: damaged(write_video(d / "a.mp4", 2.0)), load_audio, ["truncated"]),
        (lambda d: damaged(write_video(d / "a.mp4", 2.0, faststart=True), 0.7), load_audio, ["truncated"]),
        (lambda d: damaged(write_video(d / "a.mp4", 2.0)), lambda p: load_video(p, 4), ["truncated"]),
        (
            lambda d: damaged(write_video(d / "a.mp4", 2.0, faststart=True), 0.6),
            lambda p: load_video(p, 4),
            ["truncated"],
        ),
        (lambda d: write_wav(d / "a.wav"), lambda p: load_video(p, 4), ["no video track"]),
        (lambda d: write_video(d / "a.mp4", 1.0), lambda p: load_video(p, 4, start_s=5.0), ["no frame"]),
        (lambda d: damaged(write_png(d / "a.png")), load_image, ["truncated"]),
        (lambda d: damaged(write_png(d / "a.png"), 0.0), load_image, ["empty"]),
    ],
)
def test_bad_files_are_named(tmp_path, make, load, words):
    path = make(tmp_path)
    with pytest.raises(InputError) as error:
        load(path)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_a_long_file_is_accepted_when_the_limit_or_the_part_allows_it(tmp_path):
    path = write_wav(tmp_path / "a.wav", 400.0, rate_hz=8000)
    assert load_audio(path, start_s=390.0).shape == (160_000,)
    assert load_audio(path, max_s=500.0).shape == (6_400_000,)


def test_samples_that_are_not_numbers(tmp_path):
    wave = tone(0.5)
    wave[100] = np.nan
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    with pytest.raises(InputError, match="NaN"):
        load_audio(tmp_path / "a.wav")


def test_frames_that_an_edit_list_hides_are_no_truncation(tmp_path):
    """Cutting an mp4 without encoding it again leaves frames in the file that no player shows."""
    path = write_video(tmp_path / "v.mp4", seconds=3.0, sound=False)
    data = path.read_bytes()
    at = data.index(b"elst")  # version and flags, number of entries, then duration (ms here), media time, rate
    duration = int.from_bytes(data[at + 12 : at + 16], "big")
    path.write_bytes(data[: at + 12] + (duration // 2).to_bytes(4, "big") + data[at + 16 :])
    frames, metadata = load_video(path, 4)
    assert len(frames) == 4 and metadata.indices[-1] < 16


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_truncated_matroska_is_named(tmp_path, share):
    path = write_video(tmp_path / "v.mkv", seconds=6.0)
    load_video(path, 4), load_audio(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InputError, match="v.mkv.*truncated"):
        load_video(path, 4)
    with pytest.raises(InputError, match="v.mkv.*truncated"):
        load_audio(path)


def test_bytes_that_name_other_files_open_none_of_them(tmp_path, monkeypatch):
    write_video(tmp_path / "private.mp4")
    playlist = b"ffconcat version 1.0\nfile private.mp4\n"
    monkeypatch.chdir(tmp_path)
    for load in (load_audio, lambda source: end_of_track_s(source, "audio"), lambda source: load_video(source, 4)):
        with pytest.raises(InputError, match="embedded bytes"):
            load(playlist)
