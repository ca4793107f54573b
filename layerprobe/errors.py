"""User errors: each names the thing, what was received, what was allowed and the way out."""

from __future__ import annotations

from collections.abc import Mapping


class LayerprobeError(Exception):
    """Base of every error that the command line shows as one sentence and ends with exit code 2."""


class StudyError(LayerprobeError):
    """The study asks for something that does not exist or does not fit the model or the data."""


class ArgumentError(LayerprobeError, ValueError):
    """A function was given an argument that it cannot use.

    The libraries know nothing of studies: their messages name arguments, written in braces (`{k}`). `str()` of the error
    shows plain names; `with_names` shows the names that a caller knows them by, such as the keys of a study.

    Attributes:
        arguments: names of the arguments that the message mentions.
    """

    def __init__(self, message: str, *arguments: str) -> None:
        self.message, self.arguments = message, arguments
        super().__init__(self.with_names({}))

    def __reduce__(self) -> tuple[type[ArgumentError], tuple[str, ...]]:
        return type(self), (self.message, *self.arguments)

    def with_names(self, names: Mapping[str, str]) -> str:
        """The message with arguments called by other names, where `names` has one."""
        text = self.message
        for argument in self.arguments:
            text = text.replace(f"{{{argument}}}", names.get(argument, argument))
        return text


class DataError(ArgumentError):
    """The labelled examples cannot be found, read or split as specified."""


class EncoderError(ArgumentError):
    """The model or checkpoint cannot be found or loaded, or its layers cannot be numbered."""


class MeasureError(ArgumentError):
    """A measure was given values for which it is undefined."""


class StorageError(LayerprobeError):
    """Something on disk is damaged, in the way, unwritable or too large for the space left."""
