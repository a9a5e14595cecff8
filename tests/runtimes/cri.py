"""A kubelet's side of the Container Runtime Interface, v1: as much of it as the tests say.

The messages are made at run time from the lines below.  Names and numbers are
those of the public interface (k8s.io/cri-api, runtime/v1); a field that is not
listed is neither sent nor read, which protobuf allows, and a map is a list of
pairs, which is how it travels.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "runtime.v1"
MESSAGES = """
PodSandboxMetadata: string name = 1, string uid = 2, string namespace = 3, uint32 attempt = 4
LinuxPodSandboxConfig: string cgroup_parent = 1
PortMapping: uint32 protocol = 1, int32 container_port = 2, int32 host_port = 3, string host_ip = 4
Annotation: string key = 1, string value = 2
PodSandboxConfig: PodSandboxMetadata metadata = 1, string hostname = 2, string log_directory = 3,
    repeated PortMapping port_mappings = 5, repeated Annotation annotations = 7,
    LinuxPodSandboxConfig linux = 8
PodIP: string ip = 1
PodSandboxNetworkStatus: string ip = 1, repeated PodIP additional_ips = 2
PodSandboxStatus: string id = 1, uint32 state = 3, PodSandboxNetworkStatus network = 5
RunPodSandboxRequest: PodSandboxConfig config = 1
RunPodSandboxResponse: string pod_sandbox_id = 1
StopPodSandboxRequest: string pod_sandbox_id = 1
StopPodSandboxResponse:
RemovePodSandboxRequest: string pod_sandbox_id = 1
RemovePodSandboxResponse:
PodSandboxStatusRequest: string pod_sandbox_id = 1
PodSandboxStatusResponse: PodSandboxStatus status = 1
PodSandbox: string id = 1, uint32 state = 3
ListPodSandboxRequest:
ListPodSandboxResponse: repeated PodSandbox items = 1
ImageSpec: string image = 1
ContainerMetadata: string name = 1
ContainerConfig: ContainerMetadata metadata = 1, ImageSpec image = 2, repeated string command = 3,
    repeated string args = 4
CreateContainerRequest: string pod_sandbox_id = 1, ContainerConfig config = 2,
    PodSandboxConfig sandbox_config = 3
CreateContainerResponse: string container_id = 1
StartContainerRequest: string container_id = 1
StartContainerResponse:
ExecSyncRequest: string container_id = 1, repeated string cmd = 2, int64 timeout = 3
ExecSyncResponse: bytes stdout = 1, bytes stderr = 2, int32 exit_code = 3
Image: string id = 1
ImageStatusRequest: ImageSpec image = 1
ImageStatusResponse: Image image = 1
RuntimeCondition: string type = 1, bool status = 2, string reason = 3, string message = 4
RuntimeStatus: repeated RuntimeCondition conditions = 1
StatusRequest:
StatusResponse: RuntimeStatus status = 1
"""
READY = 0  # PodSandboxState.SANDBOX_READY
_FIELD = re.compile(r"(repeated )?(\w+) (\w+) = (\d+)")
_Proto = descriptor_pb2.FieldDescriptorProto


class Cri:
    """One connection to a runtime: `cri.call("Status")`.

    grpc.RpcError has the runtime's words in `details()`.
    """

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}")

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, *, timeout: float = 60.0, **fields: Any) -> Any:
        service = "ImageService" if method.startswith("Image") else "RuntimeService"
        call = self._channel.unary_unary(
            f"/{PACKAGE}.{service}/{method}",
            request_serializer=_CLASSES[f"{method}Request"].SerializeToString,
            response_deserializer=_CLASSES[f"{method}Response"].FromString,
        )
        return call(_CLASSES[f"{method}Request"](**fields), timeout=timeout, wait_for_ready=True)


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="muslin-test-cri.proto", package=PACKAGE, syntax="proto3"
    )
    for line in MESSAGES.replace("\n    ", " ").strip().splitlines():
        name, _, fields = line.partition(":")
        message = file.message_type.add(name=name)
        for repeated, kind, field, number in _FIELD.findall(fields):
            label = _Proto.LABEL_REPEATED if repeated else _Proto.LABEL_OPTIONAL
            made = message.field.add(name=field, number=int(number), label=label)
            if kind[0].isupper():
                made.type, made.type_name = _Proto.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
            else:
                made.type = getattr(_Proto, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        m.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{m.name}"))
        for m in file.message_type
    }


_CLASSES = _classes()
