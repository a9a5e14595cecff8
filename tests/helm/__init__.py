"""Rendering deploy/helm without Helm: a small reader of Go templates, and Go's own where it is."""
