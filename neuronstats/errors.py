"""The errors meant for people: what was wrong, what was expected, what to do."""

DONE, FAILED, WRONG_SETTINGS, GONE, INTERRUPTED = 0, 1, 2, 75, 130


class UserError(ValueError):
    """Something outside the code is wrong: input, disk, hub, cluster. Jobs end with exit code 1."""

    code = FAILED


class SettingsError(UserError):
    """The settings are wrong, and nothing was touched yet. Jobs end with exit code 2."""

    code = WRONG_SETTINGS


class GoneError(UserError):
    """The cluster or the store went away; the same command goes on. Jobs end with exit code 75."""

    code = GONE


def expect(key: str, value: object, words: str, *, met: bool) -> None:
    """Check a setting.

    Args:
        key: its name on the command line, such as `ray.workers`.
        value: what it is.
        words: what it should be.
        met: whether it is.

    Raises:
        SettingsError: it is not.
    """
    if not met:
        raise SettingsError(f"{key}={value}: expected {words}.")
