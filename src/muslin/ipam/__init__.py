"""Pools to blocks: what a pool may be, and which block a node should try next.  Pure.

Which *address* of a block comes next is decided where it is remembered, in
one SQL statement: `store.ledger`.
"""
