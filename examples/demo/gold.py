"""The demo's gold measure: the sentiment of a text by VADER, a lexicon of words and phrases that people rated.

Nothing is trained on it. It scores a text from -1 (negative) to 1 (positive): Hutto and Gilbert, ICWSM 2014.
"""

from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def tone(responses: list[str]) -> list[float]:
    """The compound score of each response, -1 to 1."""
    return [float(_analyzer().polarity_scores(text)["compound"]) for text in responses]
