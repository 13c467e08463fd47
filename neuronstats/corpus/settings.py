"""Which text: settings of the group `data`."""

from dataclasses import dataclass, field

from neuronstats.errors import SettingsError, expect

NO_COLUMN, NO_VALUE = "text", "unknown"  # the domain without a domain column; with a null in it

KINDS = ("sample", "local", "tokens", "hub")
PACKINGS = ("concat", "document")
BOS = ("auto", "true", "false")


@dataclass(kw_only=True, slots=True)
class Source:
    """One domain of a collection on the hub."""

    domain: str = ""
    """The domain's name in every table and figure."""
    path: str = ""
    """The data set's id on the hub."""
    config: str | None = None
    """The configuration's name; null: the data set's only or default one."""
    split: str = "train"
    """The split's name, held-out text where there is some."""
    files: str | None = None
    """File, or glob of files, in the data set that are the split; null: as the data set tells."""
    revision: str | None = None
    """A commit of the data set; null: its newest."""
    text: str = "text"
    """The text's column; dots go into nested columns."""
    filter_column: str | None = None
    """Take only rows whose value in this column (dots go into nested ones) is filter_value."""
    filter_value: str | None = None
    """The value to take."""
    share: float = 1.0
    """The domain's share of max_tokens, relative to the shares of the other domains."""


@dataclass(kw_only=True, slots=True)
class DataSettings:
    """Which text or tokens to read, and how to cut them into sequences."""

    name: str = "sample"
    """Name of the collection; names the default run folder."""
    kind: str = "sample"
    """sample (embedded), local (text files), tokens (an array of token ids) or hub."""
    path: str | None = None
    """local: a file, folder or glob of .txt, .jsonl, .parquet, .arrow. tokens: an .npy file."""
    text: str = "text"
    """The text's column in local files; dots go into nested columns."""
    domain: str | None = None
    """The domain's column in local files; null: everything is one domain, "text"."""
    sequence_length: int | None = None
    """Tokens in a sequence, the begin-of-sequence token included; null: the model's positions."""
    max_tokens: int | None = None
    """Take whole sequences, at most so many tokens in all; null: all there is."""
    packing: str = "concat"
    """concat: documents of a domain joined; document: only full pieces of single documents."""
    bos: str = "auto"
    """Whether sequences start with the begin-of-sequence token: true, false, or auto, where the
    model's tokenizer puts one before a text (OPT's always)."""
    separator: str = "auto"
    """Between joined documents: a token, as text or as id; auto: the model's end-of-sequence token.
    Of a chat model that is the end of a turn: give what ended documents in pre-training."""
    shares: dict[str, float] | None = field(default_factory=dict)
    """A domain's share of max_tokens, relative to the others; domains without one are left out.
    Empty: in proportion to what there is (whole sequences, or characters where these are more than
    16 times max_tokens)."""
    sources: list[Source] = field(default_factory=list)
    """hub: the domains, in their order."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant.

        Raises:
            SettingsError: names the field, its value and what it may be.
        """
        self.bos = str(self.bos).lower()
        expect("data.separator", "''", "auto, a token or its id", met=self.separator != "")
        for name, choices in (("kind", KINDS), ("packing", PACKINGS), ("bos", BOS)):
            value = getattr(self, name)
            expect(f"data.{name}", value, f"one of {', '.join(choices)}", met=value in choices)
        own = self.kind in ("local", "tokens")
        if own and not self.path:
            what = "a file, folder or glob" if self.kind == "local" else "an .npy file"
            raise SettingsError(f"data={self.name} needs data.path: {what}")
        if self.path and not own:
            raise SettingsError(f"data.path={self.path} is for data=local and data=tokens")
        for name, default in (("packing", "concat"), ("separator", "auto")):
            if self.kind == "tokens" and getattr(self, name) != default:
                words = "is for text; an array's sequences stay as they are"
                raise SettingsError(f"data.{name} {words}")
        for name, least in (("sequence_length", 2), ("max_tokens", 1)):
            value = getattr(self, name)
            met = value is None or value >= least
            expect(f"data.{name}", value, f"{least} or more, or null", met=met)
        if self.kind == "hub":
            _check_sources(self)
        elif self.sources:
            raise SettingsError(f"data.sources is for data=paper, not for data={self.name}")
        _check_shares(self)


def _check_sources(settings: DataSettings) -> None:
    if not settings.sources:
        raise SettingsError(f"data={settings.name} reads the hub, but data.sources is empty")
    if settings.max_tokens is None:
        raise SettingsError(f"data={settings.name} reads the hub: set data.max_tokens")
    if settings.shares:
        raise SettingsError("data.shares is for local data; a hub source has its own share")
    for source in settings.sources:
        if not source.domain or not source.path:
            raise SettingsError(f"data.sources: domain and path are needed, got {source}")
        if (source.filter_column is None) != (source.filter_value is None):
            raise SettingsError(
                f"data.sources, {source.domain}: filter_column and filter_value go together"
            )
    names = [source.domain for source in settings.sources]
    if len(set(names)) < len(names):
        raise SettingsError(f"data.sources: a domain is there twice: {', '.join(names)}")


def _check_shares(settings: DataSettings) -> None:
    if settings.shares and settings.max_tokens is None:
        raise SettingsError("data.shares are shares of data.max_tokens: set that as well")
    shares = domain_shares(settings)
    if shares is None:
        return
    wrong = {name: share for name, share in shares.items() if not 0 <= share < float("inf")}
    if wrong or not sum(shares.values()) > 0:
        raise SettingsError(f"domain shares must be 0 or more and not all 0, got {wrong or shares}")


def domain_shares(settings: DataSettings) -> dict[str, float] | None:
    """Return how the domains share the tokens, as far as that is known before reading.

    Returns:
        Each domain's share relative to the others, in the order of the settings; None where it
        is in proportion to what there is.
    """
    if settings.kind == "hub":
        return {source.domain: source.share for source in settings.sources}
    if settings.shares:
        return dict(settings.shares)
    if settings.kind == "local" and settings.domain is None:
        return {NO_COLUMN: 1.0}
    return None
