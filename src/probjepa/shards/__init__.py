"""Shards in, shards out: one output file an input file, so that any scheduler may share the work."""

from probjepa.shards.runs import MANIFEST, parse_share, run_shards
from probjepa.shards.worker import Job, ShardWorker, embeddings

__all__ = ["MANIFEST", "Job", "ShardWorker", "embeddings", "parse_share", "run_shards"]
