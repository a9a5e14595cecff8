"""Muslin: a flat container network for pods, virtual machines and physical machines.

Imports go one way, from the top of this list to the bottom:

    doors       cni (a runtime calls), cli (a person calls)
    loops       agent (one node), controller (the estate), lab (many nodes on one machine)
    hands       kernel (this machine), store (what is remembered)
    thinking    backend, ipam, plan: pure functions, no I/O, no clock
    nouns       model, config, errors

The main path, from a runtime's ADD to a pod that answers:

    cni.plugin (or shim.c) → agent.server → agent.attach.add
        → ipam.ledger.claim      one address, durable before visible
        → backend.nic            what the kernel should hold for this pod
        → kernel.apply           one veth pair, its addresses and routes
"""

__version__ = "0.1.0"
