"""The CNI door: what a container runtime says, and what it is told."""
