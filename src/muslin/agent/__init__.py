"""The node: attach pods, follow the store, keep the kernel as planned."""
