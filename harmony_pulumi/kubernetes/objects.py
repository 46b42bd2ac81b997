"""The Kubernetes objects of one PostgreSQL cluster of CloudNativePG. Pure: values in, objects out.

CloudNativePG 1.27, "API Reference", "Certificates" and "Replica clusters".
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from harmony_pulumi.capabilities.addresses import negotiation
from harmony_pulumi.hosts.postgresql import certificates, files
from harmony_pulumi.kubernetes.found import ROUTES

GROUP, VERSION, PLURAL = "postgresql.cnpg.io", "v1", "clusters"
API_VERSION = f"{GROUP}/{VERSION}"
RELEASE = "1.27.0"
"""Of CloudNativePG, what is installed where there is none."""
MANIFEST = (
    "https://raw.githubusercontent.com/cloudnative-pg/cloudnative-pg/"
    f"release-{RELEASE.rpartition('.')[0]}/releases/cnpg-{RELEASE}.yaml"
)
"""Where the project publishes its manifest: CloudNativePG, "Installation and upgrades"."""
IMAGES = "ghcr.io/cloudnative-pg/postgresql"
"""Where the project publishes PostgreSQL, a tag for each major version: CloudNativePG, "Container images"."""
MAJOR = 17
"""The version of PostgreSQL where the program is silent: CloudNativePG 1.27, "Release notes"."""
OWNER = "harmony-pulumi.dev/owner"
"""The annotation that says whose an object is: `<project>/<stack>/<resource>`."""
LOOK_AGAIN = "harmony-pulumi.dev/look-again"
"""The annotation that says when instances were last had look at their secrets."""
HIBERNATION = "cnpg.io/hibernation"
FENCED = "cnpg.io/fencedInstances"
SERVED = "harmony-pulumi.dev/served"
"""The annotation of the authority's secret, which outlives its cluster, that says which one of that name has served."""
PEER = "peer"
"""What a cluster calls the one that it follows, or would."""
OUTSIDE = "outside"
"""What its service for clients from outside of Kubernetes ends with."""
VOLUME_STATUS = "cnpg.io/pvcStatus"
DETACHED: Mapping[str, Any] = {"metadata": {"ownerReferences": None, "annotations": {VOLUME_STATUS: "detached"}}}
"""What makes a volume no part of its cluster any more, and stay: CloudNativePG, "Kubectl Plugin", `destroy`."""
MANAGER = "harmony"
"""The field manager of what orchestration changes: Kubernetes, "Server-Side Apply"."""
MOVED = ("spec.replica", "spec.externalClusters", f'metadata.annotations["{HIBERNATION}"]')
"""What orchestration changes once a cluster is made: the declaration is silent about it from then on."""

_LABEL = "cnpg.io/cluster"
"""By which pods and volumes say whose they are: CloudNativePG, "Labels and annotations"."""
_PORT = 5432
_DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")


def name_problem(name: str) -> str | None:
    """Return why a text cannot name a cluster, whose pods and services have longer names: RFC 1035, "labels"."""
    if _DNS_LABEL.fullmatch(name):
        return None
    return f"{name!r} is not taken; expected up to 40 lower-case letters, digits and '-', the first one a letter"


def image(version: object) -> str:
    """Return the image of a major version of PostgreSQL, as the project publishes it."""
    return f"{IMAGES}:{version}"


def major(image: str) -> str:
    """Return the major version in an image's tag, as CloudNativePG has it; empty if it does not say."""
    found = re.match(r"[^@:]+:(\d+)", image.rpartition("/")[2])
    return found[1] if found else ""


def path_of(namespace: str, name: str) -> str:
    """Return where a cluster is in the API."""
    return f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL}/{name}"


def secret_names(cluster: str) -> dict[str, str]:
    """Return what the secrets of a cluster are called, by what they hold."""
    kinds = ("authority", "server-ca", "server", "client-ca", "replication", PEER)
    return {kind: f"{cluster}-{kind}" for kind in kinds}


def login_name(cluster: str, role: str) -> str:
    """Return what the secret with a role's password is called. A role may have signs that no object's name may."""
    return f"{cluster}-login-{_plain(role)}"


def _plain(name: str) -> str:
    """Return a name with nothing but what an object's name may have; another one for each."""
    found = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return found if found == name else f"{found}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".lstrip("-")


def metadata(
    name: str, namespace: str, owner: str, annotations: Mapping[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """Return an object's metadata.

    What `destroy` has kept is taken over by the next `up`, whoever has changed it meanwhile: "Managing Kubernetes
    Resources with Server-Side Apply" of Pulumi.
    """
    return {
        "name": name,
        "namespace": namespace,
        "annotations": {**(annotations or {}), OWNER: owner, "pulumi.com/patchForce": "true"},
        **more,
    }


def secrets(cluster: str, namespace: str, owner: str, made: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the secrets of a cluster's certificates.

    Args:
        cluster: its name.
        namespace: where it is.
        owner: whose it is.
        made: PEM texts: `trusted`, `server_certificate`, `server_key`, `replication_certificate`, `replication_key`.
    """
    names = secret_names(cluster)
    # With this label an instance takes a change over by itself: CloudNativePG, "Certificates".
    labels = {"labels": {"cnpg.io/reload": ""}}

    def secret(kind: str, **data: Any) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls" if "tls.key" in data else "Opaque",
            "metadata": metadata(names[kind], namespace, owner, **labels),
            "stringData": data,
        }

    def pair(kind: str, which: str) -> dict[str, Any]:
        return secret(kind, **{"tls.crt": made[f"{which}_certificate"], "tls.key": made[f"{which}_key"]})

    return [
        secret("server-ca", **{"ca.crt": made["trusted"]}),
        secret("client-ca", **{"ca.crt": made["trusted"]}),
        pair("server", "server"),
        pair("replication", "replication"),
    ]


def peer_secret(cluster: str, namespace: str, owner: str, certs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the secret by which a cluster connects to the one that it follows."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": metadata(secret_names(cluster)[PEER], namespace, owner, labels={"cnpg.io/reload": ""}),
        "stringData": {
            "ca.crt": certs["ca_certificate"],
            "tls.crt": certs["client_certificate"],
            "tls.key": certs["client_key"],
        },
    }


def login_secret(cluster: str, namespace: str, owner: str, role: str, password: Any) -> dict[str, Any]:
    """Return the secret of a role's password."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/basic-auth",
        "metadata": metadata(login_name(cluster, role), namespace, owner, labels={"cnpg.io/reload": ""}),
        "stringData": {"username": role, "password": password},
    }


def route(
    cluster: str, namespace: str, owner: str, host: str, annotations: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the route by which a router of OpenShift passes TLS for a name on to the service: "Secured routes"."""
    about = metadata(f"{cluster}-{OUTSIDE}", namespace, owner, annotations)
    return {
        "apiVersion": f"{ROUTES}/v1",
        "kind": "Route",
        "metadata": about,
        "spec": {
            "host": host,
            "to": {"kind": "Service", "name": about["name"]},
            "port": {"targetPort": "postgresql"},
            "tls": {"termination": "passthrough"},
        },
    }


def route_path(namespace: str, cluster: str) -> str:
    """Return where the route of a cluster is in the API."""
    return f"/apis/{ROUTES}/v1/namespaces/{namespace}/routes/{cluster}-{OUTSIDE}"


def service(
    cluster: str, namespace: str, owner: str, service_type: Any, annotations: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the service by which clients and members outside of Kubernetes reach the instance that leads.

    It is there before the cluster is, whose certificate must name its address: nobody is to wait for its pods.
    """
    annotations = {**(annotations or {}), "pulumi.com/skipAwait": "true"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(f"{cluster}-{OUTSIDE}", namespace, owner, annotations),
        "spec": {
            "type": service_type,
            # The operator's own labels: CloudNativePG, "Labels and annotations".
            "selector": {_LABEL: cluster, "cnpg.io/instanceRole": "primary"},
            "ports": [{"name": "postgresql", "port": _PORT, "targetPort": _PORT, "protocol": "TCP"}],
        },
    }


def reached_by(endpoint: Mapping[str, Any], certs: Mapping[str, str]) -> dict[str, str]:
    """Return how a cluster reaches what it follows, as parameters of a connection: where, and as whom."""
    user = certificates.role(certs["client_certificate"])
    return {"host": endpoint["host"], "port": str(int(endpoint["port"])), "user": user, **negotiation(endpoint)}


def external_cluster(cluster: str, name_of_member: str, source: Mapping[str, Any]) -> dict[str, Any]:
    """Return what one follows, as it knows it: by an address that needs no name inside Kubernetes.

    Args:
        cluster: that follows.
        name_of_member: as which it does.
        source: how the source is reached: `reached_by`.
    """
    name = secret_names(cluster)[PEER]
    return {
        "name": PEER,
        "connectionParameters": {
            **source,
            "dbname": "postgres",
            "sslmode": "verify-full",
            "application_name": name_of_member,
            # No more than these: what the operator's own client does not know, it asks the server to set.
            "connect_timeout": "10",
        },
        "sslRootCert": {"name": name, "key": "ca.crt"},
        "sslCert": {"name": name, "key": "tls.crt"},
        "sslKey": {"name": name, "key": "tls.key"},
    }


def nobody(cluster: str) -> list[dict[str, Any]]:
    """Return both members of a pair, as one knows them that was never told of the other: it can reach none."""
    itself = {"name": cluster, "connectionParameters": {"host": f"{cluster}-rw"}}
    return [itself, {"name": PEER, "connectionParameters": {"host": "nobody.invalid"}}]


def following(cluster: str, *, leads: bool) -> dict[str, Any]:
    """Return the part of a cluster that says whether it follows the other one."""
    return {"self": cluster, "primary": cluster if leads else PEER, "source": PEER}


def told(cluster: str, clusters: Sequence[Mapping[str, Any]], *, leads: bool) -> dict[str, Any]:
    """Return what orchestration applies to a cluster: whom it follows, and nothing else."""
    spec = {"replica": following(cluster, leads=leads), "externalClusters": list(clusters)}
    return {"apiVersion": API_VERSION, "kind": "Cluster", "metadata": {"name": cluster}, "spec": spec}


def follows_as(cluster: Mapping[str, Any], source: Mapping[str, Any]) -> bool:
    """Tell whether a cluster reaches its source so: `reached_by`."""
    known = {each["name"]: each.get("connectionParameters") or {} for each in cluster["spec"]["externalClusters"]}
    return all(known[PEER].get(key) == source.get(key) for key in ("host", "port", "user", "sslnegotiation"))


def external_clusters(cluster: str, name_of_member: str, source: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return both members of a pair, as one knows them. It must list itself, too, and never connects there."""
    itself = {"name": cluster, "connectionParameters": {"host": f"{cluster}-rw"}}
    return [itself, external_cluster(cluster, name_of_member, source)]


def cluster(
    name: str,
    namespace: str,
    owner: str,
    declared: Mapping[str, Any],
    *,
    image: Any,
    storage: Mapping[str, Any],
    follows: bool,
    roles: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the cluster itself.

    Args:
        name: of the cluster.
        namespace: where it is to be.
        owner: whose it is.
        declared: what the program declares: `databases`, `settings`, `networks`, `slot_size_bound`, `instances`, ...
        image: of PostgreSQL; it may be an output.
        storage: `size`, and `storageClass` if one is named.
        follows: whether it copies a source, and follows it; else it is a new database.
        roles: what says whom it follows, `replica` and `externalClusters`: as it is made, or as it was left.
    """
    names = secret_names(name)
    first = declared["databases"][0]
    spec: dict[str, Any] = {
        "instances": declared["instances"],
        **({"resources": declared["resources"]} if declared["resources"] else {}),
        "imageName": image,
        "storage": dict(storage),
        # Certain settings need a restart after a promotion, and one instance has nobody to move to.
        "primaryUpdateMethod": "restart",
        "enableSuperuserAccess": False,
        "certificates": {
            "serverCASecret": names["server-ca"],
            "serverTLSSecret": names["server"],
            "clientCASecret": names["client-ca"],
            "replicationTLSSecret": names["replication"],
        },
        "postgresql": {
            "parameters": parameters(declared["settings"], declared["slot_size_bound"]),
            "pg_hba": hba(declared["networks"]),
            **_synchronous(declared["synchronous_instances"]),
        },
        "managed": {
            "roles": [
                {
                    "name": role,
                    "ensure": "present",
                    "login": True,
                    "passwordSecret": {"name": login_name(name, role)},
                }
                for role in dict.fromkeys(database["owner"] for database in declared["databases"])
            ],
        },
    }
    start = {
        "database": first["name"],
        "owner": first["owner"],
        "secret": {"name": login_name(name, first["owner"])},
    }
    if not follows:
        locale = {"encoding": "UTF8", "localeCollate": declared["locale"], "localeCType": declared["locale"]}
        spec["bootstrap"] = {"initdb": {**start, "dataChecksums": True, **locale}}
    else:
        spec["bootstrap"] = {"pg_basebackup": {"source": PEER, **start}}
    spec |= roles
    # Nothing is archived here. Else the operator has replicas archive, too, by a setting that takes a restart to
    # change, and each promotion would be followed by one: CloudNativePG, "Labels and annotations".
    about = metadata(name, namespace, owner, {"cnpg.io/skipWalArchiving": "enabled"})
    return {"apiVersion": API_VERSION, "kind": "Cluster", "metadata": about, "spec": spec}


def is_fenced(cluster: Mapping[str, Any] | None) -> bool:
    """Tell whether the instance that leads in a cluster is to be stopped: CloudNativePG, "Fencing"."""
    if cluster is None:
        return False
    fenced = json.loads((cluster["metadata"].get("annotations") or {}).get(FENCED) or "[]")
    return "*" in fenced or (cluster.get("status") or {}).get("currentPrimary") in fenced


def roles_at_first(name: str, member: str, source: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what says whom a cluster follows as it is made: its source, if it has one.

    Args:
        name: of the cluster.
        member: what replication calls it.
        source: what to follow: `reached_by`.
    """
    if source is None:
        return {}
    return {"replica": following(name, leads=False), "externalClusters": external_clusters(name, member, source)}


def is_asleep(cluster: Mapping[str, Any]) -> bool:
    """Tell whether a cluster is stopped, and its data kept: CloudNativePG, "Declarative hibernation"."""
    return (cluster["metadata"].get("annotations") or {}).get(HIBERNATION) == "on"


def roles_of(cluster: Mapping[str, Any]) -> dict[str, Any]:
    """Return what says whom a cluster follows, as it is: orchestration may have moved roles since it was made."""
    return {key: cluster["spec"][key] for key in ("replica", "externalClusters") if key in cluster["spec"]}


def database(cluster: str, namespace: str, owner: str, declared: Mapping[str, Any]) -> dict[str, Any]:
    """Return a database of a cluster, with its extensions. Left out later, it stays in PostgreSQL."""
    extensions = [{"name": extension, "ensure": "present"} for extension in declared["extensions"]]
    return {
        "apiVersion": API_VERSION,
        "kind": "Database",
        "metadata": metadata(f"{cluster}-{_plain(str(declared['name']))}", namespace, owner),
        "spec": {
            "cluster": {"name": cluster},
            "name": declared["name"],
            "owner": declared["owner"],
            "databaseReclaimPolicy": "retain",
            **({"extensions": extensions} if extensions else {}),  # An empty list is not kept by the API server.
        },
    }


def leads(cluster: Mapping[str, Any]) -> bool:
    """Tell whether a cluster is declared to lead, and not to follow."""
    replica = cluster["spec"].get("replica")
    return replica is None or bool(replica["primary"] == replica["self"])


def volume_path(namespace: str, name: str) -> str:
    """Return where a volume is in the API."""
    return f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}"


def listed(namespace: str, kind: str, cluster: str) -> str:
    """Return where the pods or volumes (`kind`) of a cluster are in the API."""
    return f"/api/v1/namespaces/{namespace}/{kind}?{urlencode({'labelSelector': f'{_LABEL}={cluster}'})}"


def databases_in(namespace: str) -> str:
    """Return where the databases of all clusters of a namespace are in the API."""
    return f"/apis/{API_VERSION}/namespaces/{namespace}/databases"


def is_of(database: Mapping[str, Any], cluster: str, owner: str) -> bool:
    """Tell whether a database is one of a cluster, declared with that."""
    declared = (database["metadata"].get("annotations") or {}).get(OWNER) == owner
    return declared and bool(database["spec"]["cluster"]["name"] == cluster)


def _synchronous(instances: int) -> dict[str, Any]:
    """Return how many local replicas commits wait for, whichever these are."""
    return {"synchronous": {"method": "any", "number": instances}} if instances else {}


_DEFAULTS: Mapping[str, str] = {"wal_retrieve_retry_interval": "500ms"}


def parameters(settings: Mapping[str, Any], slot_size_bound: str) -> dict[str, str]:
    """Return the settings of a cluster, as CloudNativePG takes them: texts."""
    declared = {name.lower(): files.setting_text(value) for name, value in settings.items()}
    return {**_DEFAULTS, **declared, "max_slot_wal_keep_size": slot_size_bound}


def hba(networks: Sequence[str]) -> list[str]:
    """Return who may connect, after the operator's own rules and before its last one, which lets in anybody."""
    return [*(f"hostssl all all {network} scram-sha-256" for network in networks), "host all all all reject"]


def decoded(secret: Mapping[str, Any] | None, key: str) -> str:
    """Return a text of a secret, as the API has it; empty if it is not there."""
    return base64.b64decode(((secret or {}).get("data") or {}).get(key) or "").decode(errors="replace")


def reference(cluster: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes an object go with a cluster: Kubernetes, "Garbage Collection"."""
    about = cluster["metadata"]
    return {"apiVersion": API_VERSION, "kind": "Cluster", "name": about["name"], "uid": about["uid"]}
