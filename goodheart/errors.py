"""The one tree of errors a user can meet.

    GoodheartError
    |-- ConfigError      a setting, a pipeline file or a command line is wrong
    |-- DataError        a file, a row or a column is wrong
    |   `-- TemplateError    a chat cannot be turned into tokens and a mask exactly
    |-- ModelError       a model folder cannot be read, written or used for this
    |-- RunError         a run folder or a checkpoint is damaged, taken or unfinished
    |-- HealthError      training itself went wrong (NaN, broken invariants)
    |-- GateError        a gate of a pipeline does not hold
    |-- EndpointError    a server that answers are asked of cannot be used
    `-- FeedbackError    a campaign, a label or an account is not as it must be
        |-- MissingError     there is no such campaign, task, person or link
        `-- ConflictError    it was right once: somebody or something was faster

Each message names the place (file and line, field, row or step), what is wrong, and what to do about it.
The command line prints the message alone; `--debug` adds the traceback.
"""


class GoodheartError(Exception):
    """Root of every error that goodheart raises on purpose."""


class ConfigError(GoodheartError):
    """A setting, a pipeline file or a command line is wrong."""


class DataError(GoodheartError):
    """A data file, a row or a column is wrong."""


class TemplateError(DataError):
    """A conversation cannot be rendered to tokens with an exact mask."""


class ModelError(GoodheartError):
    """A model folder cannot be read or written, or the model does not fit its use."""


class RunError(GoodheartError):
    """A run folder or checkpoint is damaged, in use, or not finished."""


class HealthError(GoodheartError):
    """Training broke: a NaN, an infinite loss, or an invariant that must hold and does not."""


class GateError(GoodheartError):
    """A gate of a pipeline does not hold: what was made is not good enough to go on with."""


class EndpointError(GoodheartError):
    """A server that answers are asked of cannot be reached, or refuses."""


class FeedbackError(GoodheartError):
    """A campaign, a label or an account is not as it must be."""


class MissingError(FeedbackError):
    """There is no such campaign, item, task, person, invitation or session (any more)."""


class ConflictError(FeedbackError):
    """What is asked for does not fit the present state: a lock ran out, a name is taken, a task is finished."""


class Interrupted(GoodheartError):
    """The user asked to stop; a checkpoint was written. The same command continues."""
