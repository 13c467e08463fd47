"""How a small OPT is trained: settings of the train job."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from neuronstats.corpus.settings import DataSettings
from neuronstats.errors import SettingsError, expect

# OPT's own numbers: the token that begins each sequence also ends each document.
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]
MIN_VOCABULARY = 256 + len(SPECIAL_TOKENS)
MAX_VOCABULARY = 1 << 16  # ids are kept as uint16

PRECISIONS = ("float32", "bfloat16")


@dataclass(kw_only=True, slots=True)
class TrainSettings:
    """What to train; the embedded models' own settings are in their training.json."""

    tokens: int = 8_000_000
    """Tokens to train on, over as many epochs as that takes; rounded up to whole steps."""
    checkpoints: list[int] = field(
        default_factory=lambda: [0, 1_000_000, 2_000_000, 4_000_000, 6_000_000]
    )
    """Keep the model after so many tokens; 0 is the untrained control. The end is always kept."""
    positions: bool = True
    """Learned positions; false: the position embeddings are zero and stay so (sec. 5.4)."""
    num_layers: int = 4
    """Decoder layers."""
    hidden_size: int = 128
    """Width of the residual stream."""
    num_heads: int = 4
    """Attention heads; a divisor of the width."""
    ffn_size: int = 1024
    """Neurons in each layer's FFN."""
    vocab_size: int = 2048
    """Entries of the byte-level BPE, the 256 bytes and 4 special tokens included."""
    sequence_length: int = 512
    """Tokens in a sequence, the begin-of-sequence token included; also the model's positions."""
    batch_sequences: int = 4
    """Sequences in a step."""
    learning_rate: float = 3e-3
    """Peak of the schedule: linear warm-up, then a cosine down."""
    final_rate_share: float = 0.05
    """Learning rate at the end, as a share of the peak."""
    warmup_share: float = 0.02
    """Share of the steps that warm up."""
    beta1: float = 0.9
    """AdamW's decay of the mean."""
    beta2: float = 0.95
    """AdamW's decay of the square."""
    weight_decay: float = 0.1
    """AdamW's, on the matrices of attention and FFN; embeddings, norms and biases have none."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    init_std: float = 0.06
    """Of the weights at the start; outputs to the residual stream have it / sqrt(2 layers)."""
    position_init_std: float = 0.02
    """Of the position embeddings at the start: small, so that what is positional was learned."""
    embedding_init_std: float | None = None
    """Of the token embeddings at the start; null: as `init_std`."""
    final_norm_init: float = 1.0
    """Gain of the last LayerNorm at the start: with large embeddings, small first logits."""
    activation_penalty: float = 0.0
    """Weight of the penalty on activations that is added to the loss: the mean over the penalised
    layers of (the sum over neurons of the mean activation over tokens) / hidden_size."""
    penalty_from_layer: int = 0
    """First layer, counted from 0, whose activations are penalised."""
    heldout_percent: int = 1
    """Documents kept out of the training for the held-out loss, chosen by a hash of their text."""
    heldout_sequences: int = 64
    """The held-out loss is measured on at most so many sequences."""
    heldout_every: int = 500
    """Steps between two held-out losses."""
    seed: int = 0
    """Decides the weights at the start and the order of the data."""
    device: str = "cpu"
    """A torch device: cpu, cuda or cuda:N."""
    precision: str = "float32"
    """float32, or bfloat16 by autocast (weights and optimizer stay float32)."""
    log_every: int = 50
    """Steps between two reports; may differ when going on."""
    save_every: int = 200
    """Steps between two saved states, the most that is lost; may differ when going on."""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            SettingsError: names the field, its value and what was expected.
        """
        positive = (
            "tokens num_layers hidden_size num_heads ffn_size batch_sequences heldout_sequences "
            "heldout_every log_every save_every learning_rate clip_norm final_norm_init"
        )
        for name in positive.split():
            self._expect(name, "more than 0", met=getattr(self, name) > 0)
        for name in ("weight_decay", "init_std", "position_init_std", "activation_penalty", "seed"):
            self._expect(name, "0 or more", met=getattr(self, name) >= 0)
        large = self.embedding_init_std is None or self.embedding_init_std > 0
        self._expect("embedding_init_std", "null or greater than 0", met=large)
        layers = f"from 0 to {self.num_layers - 1} (num_layers={self.num_layers})"
        in_model = 0 <= self.penalty_from_layer < self.num_layers
        self._expect("penalty_from_layer", layers, met=in_model)
        for name in ("final_rate_share", "warmup_share"):
            self._expect(name, "from 0 to 1", met=0 <= getattr(self, name) <= 1)
        for name in ("beta1", "beta2"):
            self._expect(name, "at least 0 and below 1", met=0 <= getattr(self, name) < 1)
        divisor = f"a divisor of hidden_size={self.hidden_size}"
        self._expect("num_heads", divisor, met=self.hidden_size % self.num_heads == 0)
        vocabulary = f"from {MIN_VOCABULARY} to {MAX_VOCABULARY}"
        in_range = MIN_VOCABULARY <= self.vocab_size <= MAX_VOCABULARY
        self._expect("vocab_size", vocabulary, met=in_range)
        self._expect("sequence_length", "2 or more", met=self.sequence_length >= 2)
        self._expect("heldout_percent", "from 1 to 50", met=1 <= self.heldout_percent <= 50)
        kept = f"numbers from 0 to tokens={self.tokens}"
        self._expect("checkpoints", kept, met=all(0 <= n <= self.tokens for n in self.checkpoints))
        self._expect("precision", " or ".join(PRECISIONS), met=self.precision in PRECISIONS)

    def _expect(self, name: str, words: str, *, met: bool) -> None:
        expect(f"train.{name}", getattr(self, name), words, met=met)

    @property
    def step_tokens(self) -> int:
        """Tokens in a step."""
        return self.batch_sequences * self.sequence_length

    @property
    def steps(self) -> int:
        """Steps in all."""
        return math.ceil(self.tokens / self.step_tokens)


@dataclass(kw_only=True, slots=True)
class TrainJob:
    """Train a small OPT from text, with or without positions, with checkpoints on the way."""

    train: TrainSettings = field(default_factory=TrainSettings)
    data: DataSettings = field(default_factory=DataSettings)
    out: str | None = None
    """The folder to train in; the models are its checkpoint-N and final."""


def check(settings: TrainJob) -> Path:
    """Refuse what this job would have to ignore.

    Returns:
        The folder to train in.

    Raises:
        SettingsError: names the setting and what to do instead.
    """
    data = settings.data
    if not settings.out:
        raise SettingsError("out= is missing: name a folder to train in")
    if "://" in settings.out:
        raise SettingsError(f"out={settings.out}: expected a local folder")
    if data.kind not in ("local", "sample"):
        raise SettingsError(
            f"data={data.name}: text from files is needed: data=local data.path=..."
        )
    replaced = {"sequence_length": "train.sequence_length", "max_tokens": "train.tokens"}
    for name, instead in replaced.items():
        if getattr(data, name) is not None:
            raise SettingsError(f"data.{name} has no meaning here: use {instead}")
    if data.shares or data.packing != "concat":
        raise SettingsError("data.shares and data.packing have no meaning here: leave them out")
    if data.separator != "auto":
        raise SettingsError("data.separator has no meaning here: leave it out")
    return Path(settings.out).expanduser()
