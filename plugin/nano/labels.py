"""What can be seen, heard and felt in the nano world: content classes, emotion labels, art forms and their words."""

import math

CONTENTS = ("rain", "waves", "fire", "bell", "drum", "bird", "clock", "flute")

# Eight sectors of 45 degrees on the valence-arousal circle, counter-clockwise from the valence axis: two a quadrant.
# The words and their order follow Russell's circumplex; the equal sectors are our simplification.
EMOTIONS = ("joyful", "excited", "tense", "angry", "sad", "gloomy", "calm", "tender")

ART_FORMS = ("painting", "animation", "music_video")

# Words of each label inside a sentence.
CONTENT_PHRASES = {
    "rain": "rain",
    "waves": "waves",
    "fire": "fire",
    "bell": "a bell",
    "drum": "a drum",
    "bird": "a bird",
    "clock": "a clock",
    "flute": "a flute",
}
ART_FORM_PHRASES = {"painting": "painting", "animation": "animation", "music_video": "music video"}

VALENCE_WORDS = ("pleasant", "unpleasant")
ENERGY_WORDS = ("high", "low")


def emotion_of(valence: float, arousal: float) -> str:
    """The label of the sector that holds the point (valence, arousal)."""
    angle = math.atan2(arousal, valence) % (2 * math.pi)
    return EMOTIONS[int(angle // (math.pi / 4)) % 8]


def valence_word(valence: float) -> str:
    return VALENCE_WORDS[0] if valence >= 0 else VALENCE_WORDS[1]


def energy_word(arousal: float) -> str:
    return ENERGY_WORDS[0] if arousal >= 0 else ENERGY_WORDS[1]
