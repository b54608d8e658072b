"""A worker of `benchmarks.startup`: joins and leaves."""

import os

if os.environ.get("BENCH_TORCH"):
    import torch  # noqa: F401

import manyhands as mh

mh.join().leave()
