"""The version of this package, read by the build and told to the hub by every worker."""

__version__ = "0.1.0"
