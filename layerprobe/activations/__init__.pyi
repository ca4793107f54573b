from ._capture import CaptureConfig as CaptureConfig
from ._capture import capture as capture
from ._store import ActivationStore as ActivationStore
from ._store import check_paired as check_paired
from ._store import content_digests as content_digests
from ._store import estimate_bytes as estimate_bytes
