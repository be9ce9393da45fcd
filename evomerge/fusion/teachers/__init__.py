"""What sources say of a corpus, position by position: one pass each, kept on disk."""

from evomerge.fusion.teachers.cache import Cache, CacheKey, Observed, fill, open_cache
from evomerge.fusion.teachers.observe import observe

__all__ = ["Cache", "CacheKey", "Observed", "fill", "observe", "open_cache"]
