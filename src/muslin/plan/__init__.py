"""What the kernel should hold: objects, their order, their text.  Pure."""
