"""User errors: each names the thing, what was received, what was allowed and the way out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager


class LayerprobeError(Exception):
    """Base of every error that the command line shows as one sentence and ends with exit code 2."""


class CombinedError(LayerprobeError):
    """Several user errors, which the command line shows as one line each.

    Attributes:
        errors: the errors, two or more.
    """

    def __init__(self, errors: Sequence[LayerprobeError]) -> None:
        self.errors = tuple(errors)
        super().__init__(" ".join(map(str, self.errors)))

    def __reduce__(self) -> tuple[type[CombinedError], tuple[tuple[LayerprobeError, ...]]]:
        return type(self), (self.errors,)


def quoted(value: object) -> str:
    """A value from data as Python writes it, shortened to what a sentence can hold."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:80]}…{text[-10:]}"


class Mistakes:
    """Collects user errors, so that all of them are reported and not the first alone."""

    def __init__(self) -> None:
        self.found: list[LayerprobeError] = []

    def add(self, message: str) -> None:
        """Note a mistake in the study or its options, in one sentence."""
        self.found.append(StudyError(message))

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep a user error that ends this context."""
        try:
            yield
        except CombinedError as error:
            self.found += error.errors
        except LayerprobeError as error:
            self.found.append(error)

    def report(self) -> None:
        """Raise what was found, if anything was.

        Raises:
            LayerprobeError: the only error, or a `CombinedError`; equal messages are reported once.
        """
        errors = list({str(error): error for error in reversed(self.found)}.values())[::-1]
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise CombinedError(errors)


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
