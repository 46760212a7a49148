"""Exact match of short answers: GQA (Hudson and Manning 2019), CLEVR (Johnson et al. 2017), and questions of our own scenes."""


def normalize(answer: str) -> str:
    """Small letters, no space at the ends, no final periods: what published GQA numbers of generative models do."""
    return answer.strip().rstrip(".").rstrip().lower()


def exact(predicted: str, answer: str) -> float:
    """1 if the answers are the same after `normalize`, else 0."""
    return float(normalize(predicted) == normalize(answer))
