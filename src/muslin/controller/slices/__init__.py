"""EndpointSlices of our own: services on a pod's other networks, and machines behind services.

    model.py       the nouns
    selectors.py   a label selector as text
    plan.py        who is behind a service, at which address and port; pure
    pack.py        into which slices they go, and what is to be written; pure
    wire.py        both as Kubernetes has them
    known.py       the watches
    loop.py        a round: plan, pack, write

Kubernetes' own controller makes slices for every Service with `spec.selector`,
of the pods' primary addresses, and cannot be told not to (KEP-4770, a label
for that, is not there; `service-proxy-name` stops kube-proxy, not the
controller).  DNS and kube-proxy join all slices of a service, whoever made
them.  Hence two cases:

- A service on another network must have no `spec.selector`, or its name would
  lead to primary addresses too: half of the answers wrong.  What it selects
  stands in an annotation, as DANM and Calico-VPP have it.  With both it gets
  an Event that says so, and no slices.  Taking the selector away from a
  Service that has one is no mend by itself: Kubernetes leaves its last slices
  where they are.  So the words are: make it anew.
- Machines beside pods are meant to be joined.  The Service keeps its selector,
  Kubernetes makes its slices, and ours hold only Workloads.

Slices are found and told apart by labels: `kubernetes.io/service-name` says
whose they are, `endpointslice.kubernetes.io/managed-by` who writes them.  We
see only those that say `muslin.io`, and change them only in the version that
we saw.  A Service without our annotations is not even kept in memory.

All is computed again from what the watches tell, so a controller that starts
anew writes nothing.  A slice is written at most once a second.  A burst of
pods costs a write per slice and second, and what one pod changes is in one
slice for each of its addresses: endpoints stay where they are.
"""

from muslin.controller.slices.loop import Slices

__all__ = ["Slices"]
