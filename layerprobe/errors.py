"""The errors that are a user's to mend: each names the thing, what came, what was allowed and the way out."""


class LayerprobeError(Exception):
    """Base of every error that the command line shows as one sentence and ends with exit code 2."""


class StudyError(LayerprobeError):
    """The study asks for something that does not exist or does not fit the model or the data."""


class DataError(LayerprobeError):
    """The labelled texts cannot be found, read or split as asked."""


class EncoderError(LayerprobeError):
    """The model or checkpoint cannot be found, loaded or numbered by layer."""


class MeasureError(LayerprobeError, ValueError):
    """A measure was given arrays for which its value is undefined."""


class StorageError(LayerprobeError):
    """Something on disk is damaged, in the way, unwritable or too large for the space left."""
