"""What runs one after the other: check everything, search, control searches, selection, the one test, the export."""

from evomerge.pipeline.export import rebuilt
from evomerge.pipeline.fusion import fuse
from evomerge.pipeline.fusion_plan import FuseOptions, FusionPlan
from evomerge.pipeline.image_fusion import fuse_images
from evomerge.pipeline.image_plan import check_here, is_image_fusion, plan_images
from evomerge.pipeline.joining import join
from evomerge.pipeline.main_job import search
from evomerge.pipeline.options import Options
from evomerge.pipeline.plan import Plan

__all__ = [
    "FuseOptions",
    "FusionPlan",
    "Options",
    "Plan",
    "check_here",
    "fuse",
    "fuse_images",
    "is_image_fusion",
    "join",
    "plan_images",
    "rebuilt",
    "search",
]
