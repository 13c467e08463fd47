"""Prediction, suppression and partition neurons: what each update does to the whole vocabulary.

Source: Gurnee et al. 2024, "Universal neurons in GPT2 language models" (arXiv 2401.12181), sec. 5;
docs/method.md, "Neurons by what they write".
"""

from functools import partial
from typing import Any

import numpy as np

from neuronstats.stats.output_embedding import AnyFloats, Floats, OutputEmbedding
from neuronstats.stats.view import BlockView, Column, Section, nulls, unknown

MEAN = Column(
    "vocabulary_mean",
    "float64",
    "mean over the vocabulary of E w, E the output embedding and w the neuron's column of the"
    " second layer",
)
VARIANCE = Column("vocabulary_variance", "float64", "its variance")
SKEWNESS = Column(
    "vocabulary_skewness", "float64", "its skewness; above 0: a few tokens are promoted"
)
KURTOSIS = Column(
    "vocabulary_kurtosis", "float64", "its excess kurtosis; 0 where it is normally distributed"
)
RATIO = Column(
    "vocabulary_variance_ratio",
    "float64",
    "its variance / that of an update of the same length in a random direction",
)
TYPE = Column(
    "vocabulary_type",
    "string",
    "prediction, suppression or partition (Gurnee et al. 2024); null: none of them",
)
COLUMNS = (MEAN, VARIANCE, SKEWNESS, KURTOSIS, RATIO, TYPE)

TYPES = ("prediction", "suppression", "partition")
LAYER_COLUMNS = tuple(
    Column(f"{kind}_neurons", "int64", f"neurons of vocabulary_type {kind}") for kind in TYPES
)


def section(view: BlockView, settings: Any) -> Section:
    """Return the moments of the neurons' updates over the vocabulary, and their types.

    Nothing is known where `reduce.vocabulary` is false; of an update that does the same to every
    token, a zero one for example, no more than mean and variance.
    """
    if not settings.vocabulary:
        columns = {column: unknown(view.num_neurons, np.float64) for column in COLUMNS[:-1]}
        types = {TYPE: _types(view.num_neurons)}
        return Section(columns | types, layer_columns=partial(nulls, LAYER_COLUMNS))
    found = moments(view.weights.embedding, view.weights.updates)
    variance, skewness, kurtosis, ratio = (found[c] for c in (VARIANCE, SKEWNESS, KURTOSIS, RATIO))
    sparse = kurtosis > settings.vocabulary_kurtosis
    is_type = (
        sparse & (skewness > 0),
        sparse & (skewness < 0),
        ~sparse & (ratio > settings.vocabulary_variance),
    )
    types = _types(view.num_neurons)
    for kind, where in zip(TYPES, is_type, strict=True):
        types[where] = kind
    shapeless = ~np.isfinite(kurtosis)
    columns = {
        MEAN: found[MEAN],
        VARIANCE: variance,
        **{c: np.ma.masked_array(found[c], shapeless) for c in (SKEWNESS, KURTOSIS, RATIO)},
        TYPE: types,
    }
    counts = [int(where.sum()) for where in is_type]
    return Section(columns, layer_sums=dict(zip(LAYER_COLUMNS, counts, strict=True)))


def moments(embedding: OutputEmbedding, updates: AnyFloats) -> dict[Column, Floats]:
    """Return the moments of updates' projections over the vocabulary.

    The projections are taken in parts; none is held whole. Powers are summed about the mean of the
    first part, so that nothing is lost where the mean is far from 0.

    Args:
        embedding: the output embedding.
        updates: [channel, neuron].

    Returns:
        By `MEAN`, `VARIANCE`, `SKEWNESS`, `KURTOSIS` and `RATIO`: float64 [neuron]; skewness and
        kurtosis are NaN where the variance is 0.
    """
    from neuronstats.stats.vocabulary_kernels import add_powers  # compiles: see `ngrams`

    num_neurons = updates.shape[1]
    shift, sums = np.zeros(num_neurons), np.zeros((4, num_neurons))
    for tokens, neurons, values in embedding.parts(updates):
        within = num_neurons - neurons.start  # of a part wider than the neurons that are left
        if tokens.start == 0:
            shift[neurons] = values.mean(axis=0)[:within]
        own = np.zeros_like(sums[:, neurons])
        add_powers(values[:, :within], shift[neurons], own)
        sums[:, neurons] += own
    first, second, third, fourth = sums / embedding.num_tokens
    variance = second - first**2
    variance[variance <= 1e-12 * second] = 0  # rounding
    third_central = third - 3 * first * second + 2 * first**3
    fourth_central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            MEAN: shift + first,
            VARIANCE: variance,
            SKEWNESS: third_central / variance**1.5,
            KURTOSIS: fourth_central / variance**2 - 3,
            RATIO: variance / embedding.random_variances(updates),
        }


def _types(num_neurons: int) -> Any:
    return np.full(num_neurons, None, object)
