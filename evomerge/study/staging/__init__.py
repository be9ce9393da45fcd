"""What workers on another machine need of this one's files: listed, hashed, and put where they find them."""

from evomerge.study.staging.manifest import Folder, Listed, listed, manifest, placed
from evomerge.study.staging.node import Pieces, stage

__all__ = ["Folder", "Listed", "Pieces", "listed", "manifest", "placed", "stage"]
