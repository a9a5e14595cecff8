"""Plans as text: <area>/<case>/in.toml says what a node knows, plan.txt what follows.

`python -m tests.golden` writes every plan.txt anew; the review reads the diff.
"""
