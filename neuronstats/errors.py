"""The errors meant for people: what was wrong, what was expected, what to do."""

DONE, FAILED, WRONG_SETTINGS, GONE, INTERRUPTED = 0, 1, 2, 75, 130


class UserError(ValueError):
    """Something outside the code is wrong: input, disk, hub, cluster. Jobs end with exit code 1."""


class SettingsError(UserError):
    """The settings are wrong, and nothing was touched yet. Jobs end with exit code 2."""


class GoneError(UserError):
    """The cluster or the store went away; the same command goes on. Jobs end with exit code 75."""
