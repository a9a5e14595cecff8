"""An API server in memory, for tests and for simulations of many nodes.

    async with ApiServer() as api:
        await api.send("POST", "/api/v1/namespaces", {...})     # in the same process
        client = connect(api.url)                               # or over HTTP

It answers as the recording of a real server does (tests/conformance/test_apiserver.py holds
it to that).  No controller runs: tests play the kubelet with `kubelet.py`.

storage.py     objects as bytes, a revisioned log; outlives the HTTP front
core.py        kinds and storage together; router.py: from a path to a verb
reads.py  writes.py  deletes.py  watch.py     the verbs
schema.py  cel.py  crds.py                    custom kinds
managed.py  fields.py  patches.py  shapes.py  ownership and merging
auth.py  rbac.py  policies.py  webhooks.py    who may
faults.py      what goes wrong on demand; server.py: HTTP
"""

from .server import ApiServer
from .settings import Settings
from .status import ApiError
from .storage import Storage
from .tls import Certificate

__all__ = ["ApiError", "ApiServer", "Certificate", "Settings", "Storage"]
