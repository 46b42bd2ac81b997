"""K8sAnywhereTopology: any Kubernetes cluster, where CloudNativePG runs PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter, methodcaller
from typing import TYPE_CHECKING, Any

import pulumi

from harmony_pulumi.capabilities.addresses import is_host
from harmony_pulumi.capabilities.postgresql import (
    Claim,
    Endpoint,
    PostgreSQL,
    PostgreSQLCluster,
    PostgreSQLPlan,
    Replication,
    ReplicationCerts,
    insist,
    uri,
)
from harmony_pulumi.capabilities.postgresql_settings import quantity
from harmony_pulumi.input_errors import InputError, Problem
from harmony_pulumi.kubernetes import objects
from harmony_pulumi.kubernetes.found import ServiceType, route_problem, route_version_problem, service_type_problem
from harmony_pulumi.topologies.base import Topology

if TYPE_CHECKING:
    from harmony_pulumi.capabilities.postgresql_config import PostgreSQLConfig
    from harmony_pulumi.providers.cluster_secrets import ClusterSecrets
    from harmony_pulumi.providers.postgresql_cluster import PostgreSQLClusterResource

_PARTS = ("trusted", "server_certificate", "server_key", "replication_certificate", "replication_key")
_AMOUNT = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
"""Kubernetes, "Quantity": what is written of it."""
_QUANTITY = re.compile(r"[1-9][0-9]*(Mi|Gi|Ti)")


@dataclass(frozen=True)
class _Place:
    """What everything on one Kubernetes cluster is declared with."""

    provider: pulumi.ProviderResource
    after: tuple[pulumi.Resource, ...]
    service_type: pulumi.Input[str]


@dataclass(frozen=True)
class _Within:
    """Where the objects of one PostgreSQL cluster are declared."""

    place: _Place
    cluster: str
    namespace: str
    owner: str
    parent: pulumi.Resource
    on_destroy: str

    def declare(
        self,
        thing: Mapping[str, Any],
        *,
        silent: Sequence[str] = (),
        after: Sequence[pulumi.Resource] = (),
        gone_with: pulumi.Resource | None = None,
    ) -> pulumi.Resource:
        """Declare an object.

        Args:
            thing: as the API takes it; its values may be outputs.
            silent: the fields that the declaration says nothing of once the object is there.
            after: what must be there before.
            gone_with: what it is gone with by itself: the operator deletes nothing of a standby.
        """
        import pulumi_kubernetes as kubernetes

        name = str(thing["metadata"]["name"])
        options = pulumi.ResourceOptions(
            parent=self.parent,
            provider=self.place.provider,
            depends_on=[*self.place.after, *after],
            ignore_changes=list(silent),
            # Of a route nothing is to be kept, and it would lead there still.
            retain_on_delete=self.on_destroy == "keep" and thing["kind"] != "Route",
            deleted_with=gone_with,
        )
        about = thing["metadata"]
        match thing["kind"]:
            case "Secret":
                return kubernetes.core.v1.Secret(
                    name, metadata=about, type=thing["type"], string_data=thing["stringData"], opts=options
                )
            case "Service":
                return kubernetes.core.v1.Service(name, metadata=about, spec=thing["spec"], opts=options)
            case kind:
                return kubernetes.apiextensions.CustomResource(
                    name, api_version=thing["apiVersion"], kind=kind, metadata=about, spec=thing["spec"], opts=options
                )


class K8sAnywhereTopology(Topology, PostgreSQL):
    """A Kubernetes cluster, whatever it is: vanilla, k3s, OpenShift, or a cloud's.

    What it is, is found out, and how its services are reached from outside with that: by load balancers where something
    makes them, else by node ports. CloudNativePG is installed only where there is none, and never touched otherwise.
    """

    def __init__(
        self,
        name: str,
        *,
        kubeconfig: pulumi.Input[str],
        context: str | None = None,
        namespace: str = "postgresql",
        address: str | None = None,
        service_type: ServiceType | None = None,
        service_annotations: Mapping[str, str] | None = None,
        instances: int = 1,
        synchronous_instances: int = 0,
        resources: Mapping[str, Mapping[str, str]] | None = None,
        storage: str = "20Gi",
        storage_class: str | None = None,
        image: str | None = None,
        operator_manifest: str | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Declare the cluster.

        Args:
            name: of the topology, and of its member in replication.
            kubeconfig: the text of one (not a path), for the API server. Kept as a secret.
            context: of the kubeconfig, if not its current one.
            namespace: where everything is made; made, too, and kept on destroy.
            address: the host name or IP by which nodes are reached from outside, for node ports; with a load balancer,
                the name that it has in DNS, if it is to be reached by one; with a route, its host name.
            service_type: how servers are reached from outside, `LoadBalancer`, `NodePort` or, told so, `Route`, for a
                router that goes by names (SNI); by default the one of the first two that fits the cluster.
            service_annotations: of that service, for what makes its load balancer: to have an inner one, say; or of
                the route.
            instances: of PostgreSQL, one of which leads; the others are local replicas.
            synchronous_instances: how many of the local replicas each commit waits for; with fewer that run, commits
                wait: CloudNativePG, "Synchronous Replication".
            resources: of each instance, as Kubernetes writes them: `{"requests": {"memory": "2Gi", "cpu": "1"}}`, with
                `limits` likewise.
            storage: the size of each instance's volume, as Kubernetes writes it: `20Gi`; at least twice
                what a slot may keep (`slot_size_bound`), so that a replica that is away fills none.
            storage_class: of the volumes, if not the cluster's default.
            image: of PostgreSQL, if not CloudNativePG's own for the version. That is the declared one; of a replica,
                its source's; else 17. Its tag must begin with the major version.
            operator_manifest: a file or an address with the manifest of CloudNativePG, for a cluster that has none; by
                default that of its release.
            opts: for the component; what is deployed there inherits them.

        Raises:
            InputError: every problem of the arguments.
        """
        problems = [
            *_problems(name, namespace, storage, address, service_type),
            *_problems_of_instances(instances, synchronous_instances, resources or {}),
        ]
        if problems:
            raise InputError(f"K8sAnywhereTopology {name!r}", problems)
        self._namespace, self._image = namespace, image
        self._each = {
            "instances": instances,
            "synchronous_instances": synchronous_instances,
            "resources": {kind: dict(amounts) for kind, amounts in (resources or {}).items()},
        }
        self._storage: dict[str, Any] = {"size": storage}
        if storage_class:
            self._storage["storageClass"] = storage_class
        self._reached: dict[str, Any] = {
            "name": name,
            "kubeconfig": pulumi.Output.secret(kubeconfig),
            "context": context,
            "address": address,
        }
        self._operator_manifest = operator_manifest or objects.MANIFEST
        self._service_type, self._service_annotations = service_type, dict(service_annotations or {})
        self._shared: _Place | None = None
        self._routed = ""
        super().__init__(name, opts)

    def plan_postgresql(self, name: str, config: PostgreSQLConfig) -> PostgreSQLPlan:
        """Return the problems and claims of a cluster here."""
        cluster = self._cluster(name)
        placement = config.for_member(self.name)
        problems = [Problem("name", problem)] if (problem := objects.name_problem(cluster)) else []
        problems += [
            Problem(path, f"{value!r} has no meaning on Kubernetes, where the operator decides that; leave it out")
            for path, value in (("port", placement.port), ("directory", placement.directory), ("adopt", config.adopt))
            if value is not None
        ]
        if 2 * (quantity("max_slot_wal_keep_size", config.slot_size_bound) or 0) > _megabytes(self._storage["size"]):
            message = (
                f"{config.slot_size_bound} for a replica that is away may fill a volume of {self._storage['size']} "
                f"(`storage` of {self.name!r}); expected at most half of it"
            )
            problems.append(Problem("slot_size_bound", message))
        if config.replication == "synchronous":
            message = (
                "'synchronous' is not offered between clusters on Kubernetes, where commits would have to wait for "
                "another one; use 'asynchronous', and `instances=3` for local replicas"
            )
            problems.append(Problem("replication", message))
        major = objects.major(self._image or "")
        if config.version and major and major != str(config.version):
            message = (
                f"{config.version}, and `image` of {self.name!r} is of {major} ({self._image}); leave one of them out"
            )
            problems.append(Problem("version", message))
        problems += self._problems_of_route(name, config)
        claim = Claim(f"Kubernetes {self.name}", "cluster", f"{self._namespace}/{cluster}", "name")
        home = {"kind": "kubernetes", "name": self.name, "owner": self._owner(name)}
        whole = PostgreSQLPlan(tuple(problems), (claim,), (self.name,), (home,))
        if self._service_type != "Route":
            return whole
        host = Claim("every router", "host name", str(self._reached["address"]), "address")
        return replace(whole, claims=(claim, host), direct=(self.name,))

    def deploy_postgresql(
        self, name: str, config: PostgreSQLConfig, *, replication: Replication | None = None
    ) -> PostgreSQLCluster:
        """Deploy a cluster here: a new database, or a replica cluster of `replication.source`."""
        insist(f"PostgreSQL {name!r} on {self.name!r}", self.plan_postgresql(name, config), config)
        declared = {**_declared(config.for_member(self.name), member=self.name), **self._each}
        source = replication.source if replication else None
        followed = (source, replication.certs or source.replication_certs) if replication and source else None
        place = self._place()
        within = _Within(place, self._cluster(name), self._namespace, self._owner(name), self, config.on_destroy)
        about = (within.cluster, within.namespace, within.owner)
        if self._service_type == "Route":
            self._routed = name
            service = within.declare(objects.service(*about, "ClusterIP"))
            route = objects.route(*about, self._reached["address"], self._service_annotations)
            service = within.declare(route, after=[service])
        else:
            service = within.declare(objects.service(*about, place.service_type, self._service_annotations))
        made = self._secrets(within, config, source, service)
        alone = not (replication and (replication.source or replication.peers))
        serving = self._serving(within, config, declared, made, replication=followed, alone=alone)
        return self._as_cluster(name, config, within, made, serving)

    def _problems_of_route(self, name: str, config: PostgreSQLConfig) -> list[Problem]:
        """Return why a database is not reached by a route: its version, or that another one here has the name."""
        if self._service_type != "Route":
            return []
        problems = [Problem("version", problem)] if (problem := route_version_problem(config.version)) else []
        if self._routed not in {"", name}:
            message = (
                f"{self._reached['address']} leads to {self._routed!r} already, and a route has one host name; give "
                f"{name!r} a topology of its own, with another `address`"
            )
            problems.append(Problem("name", message))
        return problems

    def _place(self) -> _Place:
        """Return what everything here is declared with, declared itself once."""
        if self._shared is None:
            import pulumi_kubernetes as kubernetes

            from harmony_pulumi.providers.kubernetes_cluster import KubernetesCluster

            child = pulumi.ResourceOptions(parent=self)
            cluster = KubernetesCluster(
                self.name,
                {
                    **self._reached,
                    "service_type": self._service_type,
                    "operator_manifest": self._operator_manifest,
                    "owner": f"{pulumi.get_project()}/{pulumi.get_stack()}/{self.name}",
                },
                child,
            )
            provider = kubernetes.Provider(
                self.name,
                kubeconfig=self._reached["kubeconfig"],
                context=self._reached["context"],
                # Else another address of the same API server would have everything replaced, and data deleted.
                cluster_identifier=cluster.found.apply(itemgetter("uid")),
                # Else a secret is deleted before it is made anew, and a pod that starts meanwhile finds none.
                enable_secret_mutable=True,
                # What `destroy` kept is taken over by the next `up`: only what is ours, which is looked at before.
                upsert_existing_objects=True,
                # Else a cluster that is gone has `refresh` fail for the other one, too: it is warned of, and stays.
                skip_update_unreachable=True,
                opts=child,
            )
            kept = pulumi.ResourceOptions(parent=self, provider=provider, retain_on_delete=True)
            namespace = kubernetes.core.v1.Namespace(
                f"{self.name}-{self._namespace}", metadata={"name": self._namespace}, opts=kept
            )
            reached = cluster.found.apply(lambda found: found["service_type"])
            self._shared = _Place(provider, (cluster, namespace), self._service_type or reached)
        return self._shared

    def _secrets(
        self,
        within: _Within,
        config: PostgreSQLConfig,
        source: PostgreSQLCluster | None,
        service: pulumi.Resource,
    ) -> ClusterSecrets:
        """Declare the certificates and passwords of a cluster."""
        from harmony_pulumi.providers.cluster_secrets import ClusterSecrets

        owners = dict.fromkeys(database.owner_role for database in config.declared_databases)
        given: dict[str, Any] = dict(config.passwords)
        if source is not None:  # A copy has the passwords of what it copies.
            given = {role: source.credentials.apply(methodcaller("get", role)) for role in owners}
        return ClusterSecrets(
            f"{within.cluster}-secrets",
            {
                **self._reached,
                "namespace": within.namespace,
                "cluster": within.cluster,
                "owner": within.owner,
                "service_type": within.place.service_type,
                "image": self._image_of(config, source),
                # Tried, where there is a server already, before anything is changed.
                "parameters": objects.parameters(config.settings, config.slot_size_bound),
                "storage": self._storage,
                "roles": list(owners),
                "passwords": pulumi.Output.secret(given),
                "certificate_lifetime_days": config.certificate_lifetime_days,
                "certificate_generation": config.certificate_generation,
                "authority_generation": config.authority_generation,
                "on_destroy": config.on_destroy,
                "deadline": config.deadlines.start,
            },
            pulumi.ResourceOptions(parent=self, depends_on=[service]),
        )

    def _serving(
        self,
        within: _Within,
        config: PostgreSQLConfig,
        declared: Mapping[str, Any],
        made: ClusterSecrets,
        *,
        replication: tuple[PostgreSQLCluster, pulumi.Output[ReplicationCerts]] | None,
        alone: bool,
    ) -> PostgreSQLClusterResource:
        """Declare a cluster's objects, and what waits until it serves."""
        from harmony_pulumi.hosts.postgresql.layout import slot_name
        from harmony_pulumi.providers.postgresql_cluster import PostgreSQLClusterResource

        about = (within.cluster, within.namespace, within.owner)
        passwords: pulumi.Output[Any] = pulumi.Output.secret(made.made.apply(itemgetter("passwords")))
        secrets = [within.declare(each) for each in objects.secrets(*about, _each(made.made, _PARTS))]
        owners = dict.fromkeys(database["owner"] for database in declared["databases"])
        secrets += [
            within.declare(objects.login_secret(*about, role, passwords.apply(itemgetter(role)))) for role in owners
        ]
        follows: pulumi.Output[dict[str, str]] | None = None
        if replication is not None:
            source, certs = replication
            known = pulumi.Output.all(source.endpoint, certs).apply(lambda known: objects.reached_by(*known))
            follows = pulumi.Output.unsecret(known)
            # A role change and a rotation give it the same: those of its source.
            texts = _each(certs, ("ca_certificate", "client_certificate", "client_key"))
            secrets.append(within.declare(objects.peer_secret(*about, texts)))
        image = self._image_of(config, replication[0] if replication else None)
        at_first = pulumi.Output.from_input(follows).apply(partial(objects.roles_at_first, within.cluster, self.name))
        roles = {
            key: pulumi.Output.all(made.standing, at_first).apply(partial(_as_it_stands, key))
            for key in ("replica", "externalClusters")
        }
        thing = objects.cluster(
            *about, declared, image=image, storage=self._storage, follows=follows is not None, roles=roles
        )
        after = [*secrets, *([replication[0].resource] if replication else [])]
        cluster = within.declare(thing, silent=objects.MOVED, after=after)
        databases = [
            within.declare(objects.database(*about, each), after=[cluster], gone_with=cluster)
            for each in declared["databases"]
        ]
        site = {
            "kind": "harmony_pulumi.kubernetes.site:ClusterPostgreSQL",
            **self._reached,
            "namespace": within.namespace,
            "cluster": within.cluster,
            "owner": within.owner,
            "endpoint": made.endpoint,
            "slot": slot_name(within.owner),
        }
        return PostgreSQLClusterResource(
            within.cluster,
            {
                "site": pulumi.Output.secret(site),
                "declared": declared,
                "image": image,
                "storage": self._storage,
                "on_destroy": config.on_destroy,
                "alone": alone,
                # One that is made anew in its place is to be waited for as the first was.
                "uid": _uid(cluster),
                "source": follows,
                # New ones are to be used, which is what this waits for, too.
                "certificates": pulumi.Output.unsecret(made.made.apply(_issued)),
                "deadline": config.deadlines.start + (config.deadlines.clone if replication else 0),
            },
            pulumi.ResourceOptions(parent=self, depends_on=[cluster, *databases]),
        )

    def _as_cluster(
        self,
        name: str,
        config: PostgreSQLConfig,
        within: _Within,
        made: ClusterSecrets,
        serving: PostgreSQLClusterResource,
    ) -> PostgreSQLCluster:
        """Return what was declared as a cluster."""
        first = config.declared_databases[0]
        passwords: pulumi.Output[Any] = pulumi.Output.secret(made.made.apply(itemgetter("passwords")))
        identity = f"kubernetes={self.name} namespace={within.namespace} cluster={within.cluster}"
        return PostgreSQLCluster(
            name=name,
            endpoint=made.endpoint,
            uri=pulumi.Output.all(made.endpoint, passwords).apply(
                lambda known: uri([known[0]], first.name, first.owner_role, known[1][first.owner_role])
            ),
            ca_certificate=made.made.apply(itemgetter("ca")),
            data_directory=pulumi.Output.from_input("/var/lib/postgresql/data/pgdata"),
            version=serving.postgresql_version,
            site=serving.site,
            replication_certs=pulumi.Output.secret(made.made.apply(_certs)),
            credentials=passwords,
            identity=pulumi.Output.from_input(identity),
            system_identifier=serving.system_identifier,
            event_log=pulumi.Output.from_input(f"configmap {within.namespace}/{within.cluster}-events"),
            resource=serving,
            sensitive=True,
        )

    def get_replication_certs(self, cluster: PostgreSQLCluster) -> pulumi.Output[ReplicationCerts]:
        """Return what a replica of the cluster needs to connect. Secret."""
        return cluster.replication_certs

    def get_endpoint(self, cluster: PostgreSQLCluster) -> pulumi.Output[Endpoint]:
        """Return where the cluster answers."""
        return cluster.endpoint

    def get_ca_certificate(self, cluster: PostgreSQLCluster) -> pulumi.Output[str]:
        """Return the authority of the cluster, PEM."""
        return cluster.ca_certificate

    def _image_of(self, config: PostgreSQLConfig, source: PostgreSQLCluster | None) -> pulumi.Input[str]:
        """Return the image: always one, since an operator would choose its own anew as that is upgraded."""
        if self._image:
            return self._image
        if config.version or source is None:
            return objects.image(config.version or objects.MAJOR)
        return source.version.apply(lambda version: objects.image(version.split(".")[0]))

    def _cluster(self, name: str) -> str:
        return f"{self.name}-{name}"

    def _owner(self, name: str) -> str:
        return f"{pulumi.get_project()}/{pulumi.get_stack()}/{self.name}-{name}"


def _as_it_stands(key: str, known: Sequence[Any]) -> Any:
    """Return a part of what says whom a cluster follows: of one that is there, as it is; else as it is made."""
    standing, at_first = known
    return (standing or at_first).get(key)


def _uid(thing: pulumi.Resource) -> pulumi.Output[str | None]:
    """Return what tells an object from all others, also of the same name; a user's Pulumi mocks know none."""
    metadata: pulumi.Output[Mapping[str, str]] = vars(thing)["metadata"]
    return metadata.apply(methodcaller("get", "uid"))


def _each(values: pulumi.Output[Any], keys: Sequence[str]) -> dict[str, pulumi.Output[Any]]:
    """Return outputs of each of these values."""
    return {key: values.apply(itemgetter(key)) for key in keys}


def _issued(made: Mapping[str, str]) -> str:
    """Return what tells the certificates of a cluster from others: a serial number, no secret."""
    from harmony_pulumi.hosts.postgresql.certificates import serial

    return serial(made["server_certificate"])


def _certs(made: Mapping[str, str]) -> ReplicationCerts:
    return {
        "ca_certificate": made["ca"],
        "client_certificate": made["replication_certificate"],
        "client_key": made["replication_key"],
    }


def _declared(config: PostgreSQLConfig, *, member: str) -> dict[str, Any]:
    """Return a configuration as the objects of a cluster have it."""
    return {
        "databases": [
            {"name": d.name, "owner": d.owner_role, "extensions": list(d.extensions)} for d in config.declared_databases
        ],
        "settings": dict(config.settings),
        "networks": list(config.authentication.networks),
        "slot_size_bound": config.slot_size_bound,
        "locale": config.locale,
        "member": member,
    }


def _problems(
    name: object, namespace: str, storage: str, address: str | None, service_type: str | None
) -> list[Problem]:
    problems = [
        Problem(path, message)
        for path, value in (("name", name), ("namespace", namespace))
        if (message := objects.name_problem(str(value)))
    ]
    if not _QUANTITY.fullmatch(storage):
        problems.append(Problem("storage", f"{storage!r} is not a size; expected for instance '10Gi'"))
    if service_type == "Route":
        problems += [Problem("address", message)] if (message := route_problem(address)) else []
    elif address is not None and not is_host(address):
        problems.append(Problem("address", f"{address!r} is neither a host name nor an IP address"))
    if service_type is not None and (message := service_type_problem(service_type)):
        problems.append(Problem("service_type", message))
    return problems


def _megabytes(size: str) -> int:
    """Return what a volume has, of 2^20 bytes each, as PostgreSQL counts, too."""
    return int(size[:-2]) * {"Mi": 1, "Gi": 2**10, "Ti": 2**20}[size[-2:]]


def _problems_of_instances(
    instances: int, synchronous_instances: int, resources: Mapping[str, Mapping[str, str]]
) -> list[Problem]:
    problems: list[Problem] = []
    if instances < 1:
        problems.append(Problem("instances", f"{instances} is not a number of instances; expected at least 1"))
    elif not 0 <= synchronous_instances < instances:
        message = f"{synchronous_instances} of {instances - 1} local replicas; expected from 0 to that"
        problems.append(Problem("synchronous_instances", message))
    problems += [
        Problem(f"resources.{kind}", "no such kind; there are requests and limits")
        for kind in resources
        if kind not in {"requests", "limits"}
    ]
    problems += [
        Problem(f"resources.{kind}.{name}", f"{amount!r} is not an amount; expected for instance '2Gi', '500m' or '1'")
        for kind, amounts in resources.items()
        for name, amount in amounts.items()
        if not _AMOUNT.fullmatch(str(amount))
    ]
    return problems
