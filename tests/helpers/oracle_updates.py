"""What updates write on the vocabulary, the slow way: projections, ranks, moments, types."""

import math

Row = dict[str, object]


def project(
    column: list[float],
    embedding: list[list[float]],
    project_out: list[list[float]] | None = None,
    *,
    centred: bool = False,
) -> list[float]:
    """A neuron's update (its column of fc2) on the vocabulary: a value for each token."""
    if project_out is not None:
        column = [math.fsum(a * b for a, b in zip(row, column, strict=True)) for row in project_out]
    values = [math.fsum(a * b for a, b in zip(row, column, strict=True)) for row in embedding]
    mean = math.fsum(values) / len(values) if centred else 0.0
    return [value - mean for value in values]


def suppression_row(projection: list[float], triggers: list[int], num_top: int = 20) -> Row:
    """A token detector's triggers among all tokens, and the ends of its projection."""
    rising = sorted(range(len(projection)), key=lambda token: (projection[token], token))
    fallen = sorted(range(len(projection)), key=lambda token: (-projection[token], token))
    promoted, suppressed = fallen[:num_top], rising[:num_top]
    return {
        "triggers": triggers,
        "trigger_rank": [rising.index(token) for token in triggers],
        "promoted": promoted,
        "promoted_projection": [projection[token] for token in promoted],
        "suppressed": suppressed,
        "suppressed_projection": [projection[token] for token in suppressed],
    }


def vocabulary_row(
    column: list[float],
    embedding: list[list[float]],
    project_out: list[list[float]] | None,
    settings,
) -> Row:
    """The moments of a neuron's projection, and what kind of neuron they make it."""
    values = project(column, embedding, project_out)
    mean, variance = _mean_and_variance(values)
    if project_out is not None:
        column = [math.fsum(a * b for a, b in zip(row, column, strict=True)) for row in project_out]
    channels = [_mean_and_variance(channel)[1] for channel in zip(*embedding, strict=True)]
    random = math.fsum(x * x for x in column) * math.fsum(channels) / len(channels)
    third, fourth = (
        math.fsum((value - mean) ** power for value in values) / len(values) for power in (3, 4)
    )
    skewness, kurtosis = third / variance**1.5, fourth / variance**2 - 3
    ratio, kind = variance / random, None
    if kurtosis > settings.vocabulary_kurtosis and skewness:
        kind = "prediction" if skewness > 0 else "suppression"
    elif kurtosis <= settings.vocabulary_kurtosis and ratio > settings.vocabulary_variance:
        kind = "partition"
    return {
        "vocabulary_mean": mean,
        "vocabulary_variance": variance,
        "vocabulary_skewness": skewness,
        "vocabulary_kurtosis": kurtosis,
        "vocabulary_variance_ratio": ratio,
        "vocabulary_type": kind,
    }


def _mean_and_variance(values) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / len(values)
