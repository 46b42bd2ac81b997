"""A stand-in for Pulumi's Kubernetes plugin, where that cannot be had: for tests alone, found by PATH.

It applies any object server-side, as that does, and its preview is a server-side dry run: it answers nothing that the
API server did not. It takes the options that `HONOURED` names as pulumi-kubernetes documents them ("Provider"), and
refuses others. It does not wait until an object is ready, knows no schema and names nothing by itself.
"""

from __future__ import annotations

import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent import futures
from importlib.metadata import version
from typing import Any

import grpc
import urllib3
import yaml
from google.protobuf import empty_pb2, json_format, struct_pb2
from kubernetes import client
from kubernetes.config import ConfigException
from kubernetes.config.kube_config import new_client_from_config_dict
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import ConflictError, DynamicApiError, NotFoundError, ResourceNotFoundError
from pulumi.runtime.proto import plugin_pb2, provider_pb2_grpc
from pulumi.runtime.proto import provider_pb2 as pb

Context = grpc.ServicerContext

MANAGER = "pulumi-kubernetes"
HONOURED = {
    "clusterIdentifier",
    "context",
    "enableSecretMutable",
    "kubeconfig",
    "skipUpdateUnreachable",
    "upsertExistingObjects",
    "version",  # of the plugin
}
SIGNATURE, SECRET = "4dabf18193072939515e22adb298388d", "1b47061264138c4ac30d75fd1eb44270"
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
KEPT = ("apiVersion", "kind", "metadata", "spec", "status", "type", "data", "stringData")
GONE_SECONDS = 300
TIMEOUT = (5, 30)
"""To connect, and to be answered."""


class StandInError(Exception):
    """Why a call fails."""


def plain(value: Any) -> Any:
    """Return a property without the marks of secrets, whole numbers as such."""
    if isinstance(value, dict):
        if value.get(SIGNATURE) == SECRET:
            return plain(value["value"])
        return {key: plain(v) for key, v in value.items() if not key.startswith("__")}
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def properties(message: struct_pb2.Struct) -> dict[str, Any]:
    """Return properties; null is as if it were not there, as the plugin that is stood in for has it (SkipNulls)."""
    return without_nulls(plain(json_format.MessageToDict(message)))


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(v) for key, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def as_message(value: dict[str, Any]) -> struct_pb2.Struct:
    return json_format.ParseDict(value, struct_pb2.Struct())


def outputs(live: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object as the state has it."""
    found = {key: live[key] for key in KEPT if key in live}
    found["metadata"] = {key: value for key, value in live["metadata"].items() if key != "managedFields"}
    if live.get("kind") == "Secret":
        for key in ("data", "stringData"):
            if key in found:
                found[key] = {SIGNATURE: SECRET, "value": found[key]}
    return found


def is_known(value: Any) -> bool:
    if isinstance(value, dict):
        return all(is_known(v) for v in value.values())
    if isinstance(value, list):
        return all(is_known(v) for v in value)
    return value != UNKNOWN


def like(shape: Any, live: Any) -> Any:
    """Return of a live object what a declaration speaks of."""
    if isinstance(shape, dict) and isinstance(live, dict):
        return {key: like(value, live[key]) for key, value in shape.items() if key in live}
    if isinstance(shape, list) and isinstance(live, list) and len(shape) == len(live):
        return [like(one, other) for one, other in zip(shape, live, strict=True)]
    return live


def steps(path: str) -> list[str]:
    """Return the keys of a property path."""
    return [quoted or bare for quoted, bare in re.findall(r'\["([^"]*)"\]|([^.\[\]]+)', path)]


def managers(live: Mapping[str, Any], keys: list[str]) -> Iterator[str]:
    """Yield who manages a field, or something in it."""
    for entry in live["metadata"].get("managedFields", ()):
        fields = entry.get("fieldsV1", {})
        for key in keys:
            fields = fields.get(f"f:{key}")
            if fields is None:
                break
        else:
            yield entry["manager"]


def without(value: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    first, *rest = keys
    if first not in value:
        return value
    if not rest:
        return {key: v for key, v in value.items() if key != first}
    return {**value, first: without(value[first], rest)}


def active_cluster(config: Mapping[str, Any]) -> Any:
    """Return what a provider's configuration says of the API server."""
    if not is_known(config.get("kubeconfig", UNKNOWN)):
        return UNKNOWN
    kubeconfig = yaml.safe_load(config["kubeconfig"])
    context = config.get("context") or kubeconfig.get("current-context")
    names = [each["context"]["cluster"] for each in kubeconfig["contexts"] if each["name"] == context]
    return [each["cluster"] for each in kubeconfig["clusters"] if each["name"] in names]


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


class Kubernetes(provider_pb2_grpc.ResourceProviderServicer):
    """One provider process. An engine has one for each explicit provider."""

    def __init__(self) -> None:
        self.cluster: DynamicClient | None = None
        self.gone = ""
        """Why the cluster does not answer."""
        self.options: set[str] = set()
        """Those that are on."""
        self.discovery = threading.Lock()

    # -- configuration ---------------------------------------------------------------------------------------------

    def Handshake(self, request: pb.ProviderHandshakeRequest, context: Context) -> pb.ProviderHandshakeResponse:  # noqa: N802
        return pb.ProviderHandshakeResponse(accept_secrets=True)

    def GetPluginInfo(self, request: empty_pb2.Empty, context: Context) -> plugin_pb2.PluginInfo:  # noqa: N802
        return plugin_pb2.PluginInfo(version=version("pulumi_kubernetes"))

    def GetSchema(self, request: pb.GetSchemaRequest, context: Context) -> pb.GetSchemaResponse:  # noqa: N802
        return pb.GetSchemaResponse(schema="{}")

    def CheckConfig(self, request: pb.CheckRequest, context: Context) -> pb.CheckResponse:  # noqa: N802
        unknown = properties(request.news).keys() - HONOURED
        reason = "is no option that this stand-in for the plugin has"
        failures = [pb.CheckFailure(property=key, reason=reason) for key in sorted(unknown)]
        return pb.CheckResponse(inputs=request.news, failures=failures)

    def DiffConfig(self, request: pb.DiffRequest, context: Context) -> pb.DiffResponse:  # noqa: N802
        old, new = properties(request.olds), properties(request.news)
        differ = changed(old, new)
        was, is_ = old.get("clusterIdentifier"), new.get("clusterIdentifier")
        replaces: list[str] = []
        if was and is_ and was != is_:
            replaces = ["clusterIdentifier"]
        elif not (was and is_) and active_cluster(old) != active_cluster(new):
            replaces = [key for key in ("context", "kubeconfig") if key in differ]
        some = pb.DiffResponse.DIFF_SOME if differ else pb.DiffResponse.DIFF_NONE
        return pb.DiffResponse(changes=some, diffs=differ, replaces=replaces)

    def Configure(self, request: pb.ConfigureRequest, context: Context) -> pb.ConfigureResponse:  # noqa: N802
        given = properties(request.args)
        self.options = {key for key, value in given.items() if value in (True, "true")}
        if is_known(given.get("kubeconfig", UNKNOWN)):
            self.connect(given["kubeconfig"], given.get("context"))
        return pb.ConfigureResponse(acceptSecrets=True, supportsPreview=True)

    def connect(self, kubeconfig: str, context: str | None) -> None:
        """Know the cluster, or why it does not answer."""
        configuration = client.Configuration(retries=False)
        try:
            connections = new_client_from_config_dict(
                yaml.safe_load(kubeconfig), context, persist_config=False, client_configuration=configuration
            )
            client.VersionApi(connections).get_code(_request_timeout=TIMEOUT)
            # What it has learned of a cluster, it would keep in a file for all that ever are at its address.
            with tempfile.TemporaryDirectory() as folder:
                self.cluster = DynamicClient(connections, cache_file=f"{folder}/kinds")
        except (ConfigException, client.ApiException, urllib3.exceptions.HTTPError) as error:
            self.gone = f"configured Kubernetes cluster is unreachable: {error}"

    @property
    def skips(self) -> bool:
        """What is on a cluster that does not answer is taken to be as it was."""
        return bool(self.gone) and "skipUpdateUnreachable" in self.options

    @property
    def upserts(self) -> bool:
        """What is there already is taken over as it is made."""
        return "upsertExistingObjects" in self.options

    def Cancel(self, request: empty_pb2.Empty, context: Context) -> empty_pb2.Empty:  # noqa: N802
        return empty_pb2.Empty()

    # -- objects ---------------------------------------------------------------------------------------------------

    def kind(self, thing: Mapping[str, Any]) -> Any:
        """Return the client for an object's kind."""
        if self.cluster is None:
            raise StandInError(self.gone)
        with self.discovery:
            return self.cluster.resources.get(api_version=thing["apiVersion"], kind=thing["kind"])

    def live(self, thing: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return an object as it is, or None if it is not."""
        try:
            return self.kind(thing).get(**named(thing), _request_timeout=TIMEOUT).to_dict()
        except (NotFoundError, ResourceNotFoundError):
            return None

    def apply(self, thing: dict[str, Any], *, preview: bool) -> dict[str, Any]:
        force = thing["metadata"].get("annotations", {}).get("pulumi.com/patchForce") == "true"
        kind = self.kind(thing)
        return kind.server_side_apply(thing, **named(thing), force_conflicts=force, **as_ours(preview)).to_dict()

    def create(self, thing: dict[str, Any], *, preview: bool) -> dict[str, Any]:
        """Make an object that must not be there yet, unless it may be taken over."""
        if self.upserts:
            return self.apply(thing, preview=preview)
        return self.kind(thing).create(thing, namespace=named(thing)["namespace"], **as_ours(preview)).to_dict()

    def Check(self, request: pb.CheckRequest, context: Context) -> pb.CheckResponse:  # noqa: N802
        if self.skips:
            return pb.CheckResponse(inputs=request.olds)
        found = properties(request.news)
        failures = []
        if not found.get("metadata", {}).get("name"):
            failures.append(pb.CheckFailure(property="metadata.name", reason="is missing"))
        return pb.CheckResponse(inputs=request.news, failures=failures)

    def Diff(self, request: pb.DiffRequest, context: Context) -> pb.DiffResponse:  # noqa: N802
        old, new = properties(request.old_inputs), properties(request.news)
        differ = changed(old, new)
        moved = any(old["metadata"].get(key) != new["metadata"].get(key) for key in ("name", "namespace"))
        forcing = {"apiVersion", "kind"}
        if new["kind"] == "Secret" and ("enableSecretMutable" not in self.options or new.get("immutable")):
            forcing |= {"data", "stringData", "type"}
        replaces = [key for key in differ if key in forcing or (key == "metadata" and moved)]
        some = pb.DiffResponse.DIFF_SOME if differ else pb.DiffResponse.DIFF_NONE
        return pb.DiffResponse(
            changes=some, replaces=replaces, diffs=differ, deleteBeforeReplace=bool(replaces) and not moved
        )

    def Create(self, request: pb.CreateRequest, context: Context) -> pb.CreateResponse:  # noqa: N802
        thing = properties(request.properties)
        as_given = pb.CreateResponse(properties=request.properties)
        if request.preview and (self.cluster is None or not is_known(thing)):
            return as_given
        try:
            made = self.create(thing, preview=request.preview)
        except (NotFoundError, ResourceNotFoundError):
            # Its namespace or its kind is yet to be made.
            if request.preview:
                return as_given
            raise
        except ConflictError:
            # One of its name is there, which may be yet to be deleted.
            if request.preview and not self.upserts:
                return as_given
            raise
        return pb.CreateResponse(id=identifier(thing), properties=as_message(outputs(made)))

    def Read(self, request: pb.ReadRequest, context: Context) -> pb.ReadResponse:  # noqa: N802
        if self.skips:
            return pb.ReadResponse(id=request.id, properties=request.properties, inputs=request.inputs)
        given = properties(request.inputs)
        live = self.live(given)
        if live is None:
            return pb.ReadResponse()
        seen = like(given, live)
        # What is written as text is read as base64: it is told by the digest of before, not read back.
        if "stringData" in (inputs := json_format.MessageToDict(request.inputs)):
            seen["stringData"] = inputs["stringData"]
        return pb.ReadResponse(id=request.id, properties=as_message(outputs(live)), inputs=as_message(seen))

    def Update(self, request: pb.UpdateRequest, context: Context) -> pb.UpdateResponse:  # noqa: N802
        thing = properties(request.news)
        if request.preview and (self.cluster is None or not is_known(thing)):
            return pb.UpdateResponse(properties=request.news)
        live = self.live(thing) or {"metadata": {}}
        for path in request.ignoreChanges:
            # A field that others own is left to them: applied once more, with its old value, it would be taken.
            if any(manager != MANAGER for manager in managers(live, steps(path))):
                thing = without(thing, steps(path))
        return pb.UpdateResponse(properties=as_message(outputs(self.apply(thing, preview=request.preview))))

    def Delete(self, request: pb.DeleteRequest, context: Context) -> empty_pb2.Empty:  # noqa: N802
        thing = properties(request.properties)
        try:
            self.kind(thing).delete(**named(thing), _request_timeout=TIMEOUT)
        except (NotFoundError, ResourceNotFoundError):
            return empty_pb2.Empty()
        end = time.monotonic() + GONE_SECONDS
        while (live := self.live(thing)) is not None:
            if time.monotonic() > end:
                left = live["metadata"].get("finalizers", [])
                raise StandInError(f"{request.id} is still there after {GONE_SECONDS} s; its finalizers: {left}")
            time.sleep(0.2)
        return empty_pb2.Empty()


def named(thing: Mapping[str, Any]) -> dict[str, str]:
    """Return the name and the namespace of an object; the latter means nothing to a kind that has none."""
    about = thing["metadata"]
    return {"name": about["name"], "namespace": about.get("namespace", "default")}


def as_ours(preview: bool) -> dict[str, Any]:
    """Return how an object is changed."""
    return {"field_manager": MANAGER, "dry_run": "All" if preview else None, "_request_timeout": TIMEOUT}


def identifier(thing: Mapping[str, Any]) -> str:
    about = thing["metadata"]
    return "/".join(filter(None, (about.get("namespace"), about["name"])))


def telling(method: Any) -> Any:
    """Have a call fail with the message of its error."""

    def call(self: Kubernetes, request: Any, context: Context) -> Any:
        try:
            return method(self, request, context)
        except DynamicApiError as error:
            said = error.summary()
        except (StandInError, ResourceNotFoundError) as error:
            said = str(error)
        except urllib3.exceptions.HTTPError as error:
            said = f"the API server does not answer: {error}"
        return context.abort(grpc.StatusCode.UNKNOWN, said)

    return call


for name in ("Create", "Read", "Update", "Delete"):
    setattr(Kubernetes, name, telling(getattr(Kubernetes, name)))


def main() -> None:
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=16),
        options=[("grpc.max_receive_message_length", 400 << 20), ("grpc.max_send_message_length", 400 << 20)],
    )
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(Kubernetes(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    print(port, flush=True)
    parent = os.getppid()
    while not ended.wait(1):
        if os.getppid() != parent:  # The engine was killed.
            break
    server.stop(0)
