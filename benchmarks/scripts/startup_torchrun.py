"""The peer of `benchmarks.startup`: initialises gloo and leaves."""

import torch.distributed as dist

dist.init_process_group("gloo")
dist.destroy_process_group()
