"""What is decided once for the whole estate: networks and pools."""
