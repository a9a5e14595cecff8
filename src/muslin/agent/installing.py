"""The CNI plugin and its configuration, put in place by the agent: setting `cni_install`.

Done once in an agent's life, when its node can take pods: a configuration in
runtimes' directory is what makes a kubelet call its node ready.  Each start
does it again, which brings a newer plugin with a newer agent, and changes
nothing where all is as it should be.  Nothing is taken away at the end: pods
that come while an agent restarts are told to come again by the plugin.

In a pod it is the compiled plugin or none.  The runtime is outside: there the
Python twin would find neither the image's interpreter nor its libraries, while
a probe inside would find both, so that the node would be ready and every ADD
fail.  Without the configuration the node stays not ready, and says why.
"""

from __future__ import annotations

from pathlib import Path

from muslin.agent import doctor
from muslin.cni.install import install
from muslin.config import Config
from muslin.errors import ConfigError
from muslin.log import log
from muslin.store.url import KubernetesAt, parse


def put(config: Config) -> tuple[str, ...]:
    """Install, and say what a person must see to.  Blocks; raises what `install` does."""
    pod = in_pod(config)
    try:
        done = install(
            bin_dir=Path(config.cni_bin_dir),
            conf_dir=Path(config.cni_conf_dir),
            socket=config.cni_socket,
            journal=config.journal_dir,
            twin="c" if pod else "auto",
        )
    except ConfigError as e:
        if not pod:
            raise
        hint = "deploy/image/Containerfile builds an image that has it"
        raise ConfigError(e.subject, e.faults, hint=hint) from e
    log.info("cni.installed", written=[str(p) for p in done.written], twin=done.twin, why=done.why)
    looked = [f for f in doctor.containerd(config) if f.verdict != "good"]
    notes = tuple(f"{f.what}: {f.detail}; {f.mend}".rstrip("; ") for f in looked)
    for note in notes:
        log.warning("cni.not_found_by_runtime", why=note)
    return notes


def in_pod(config: Config) -> bool:
    """Whether this agent runs in an image of its own: its store is reached as only a pod can."""
    place = parse(config.store, config.store_options)
    return isinstance(place, KubernetesAt) and place.kubeconfig is None
