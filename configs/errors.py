"""The one exception for faults that a user can mend."""


class UserError(Exception):
    """A foreseeable fault. Its message says what is wrong, where, and what to do about it."""


class ConfigError(UserError):
    """A fault in a configuration file or in an override given on the command line."""
