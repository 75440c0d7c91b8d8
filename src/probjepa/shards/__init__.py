"""Shards in, shards out: one output file an input file, so that any scheduler may share the work."""

from probjepa.shards.images import embeddings
from probjepa.shards.job import Job
from probjepa.shards.ray_engine import RayEngine
from probjepa.shards.runs import MANIFEST, parse_share, run_shards
from probjepa.shards.worker import ShardWorker

__all__ = ["MANIFEST", "Job", "RayEngine", "ShardWorker", "embeddings", "parse_share", "run_shards"]
