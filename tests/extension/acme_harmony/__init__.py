"""What Acme adds to harmony: a cloud, key-value stores, and mirrors of any number of members."""

from acme_harmony.cloud import AcmeCloudTopology
from acme_harmony.failover import FailoverTopology
from acme_harmony.key_value import KeyValue, KeyValueConfig, KeyValueGroup, KeyValueStore
from acme_harmony.mirrored import MirroredTopology
from acme_harmony.redis_host import RedisHostTopology, RedisKeyValue

__all__ = [
    "AcmeCloudTopology",
    "FailoverTopology",
    "KeyValue",
    "KeyValueConfig",
    "KeyValueGroup",
    "KeyValueStore",
    "MirroredTopology",
    "RedisHostTopology",
    "RedisKeyValue",
]
