"""The `muslin` command: a door that translates and prints, and holds no logic."""
