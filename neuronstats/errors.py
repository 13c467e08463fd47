"""The two errors meant for people: what was wrong, what was expected, what to do."""

DONE, FAILED, WRONG_SETTINGS, INTERRUPTED = 0, 1, 2, 130


class UserError(ValueError):
    """Something outside the code is wrong: input, disk, hub, cluster. Jobs end with exit code 1."""


class SettingsError(UserError):
    """The settings are wrong, and nothing was touched yet. Jobs end with exit code 2."""
