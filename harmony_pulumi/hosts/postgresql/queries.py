"""What a server is asked, wherever it runs: SQL whose answer is one JSON value. Run as its superuser."""

from __future__ import annotations


def together(**queries: str) -> str:
    """Return one query whose answer has those of several, by name: to ask once takes longer than to answer all."""
    answers = ", ".join(f"'{name}', ({query})" for name, query in queries.items())
    return f"SELECT json_build_object({answers})"


# When a source was last heard of is told by the standby's own clock, with which `clock` is compared: once it is not
# connected any more, by the file that it last wrote what it received to.
LOOK = """
SELECT json_build_object(
  'role', CASE WHEN pg_is_in_recovery() THEN 'standby' ELSE 'primary' END,
  'timeline', CASE WHEN pg_is_in_recovery()
    THEN coalesce((SELECT received_tli FROM pg_stat_wal_receiver), (SELECT timeline_id FROM pg_control_checkpoint()))
    ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END,
  'lsn', CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
  'received', CASE WHEN pg_is_in_recovery()
    THEN coalesce(greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::text, '') ELSE '' END,
  'heard_lsn', coalesce((SELECT latest_end_lsn::text FROM pg_stat_wal_receiver), ''),
  'heard_at', CASE WHEN pg_is_in_recovery() THEN coalesce(
    (SELECT to_json(last_msg_receipt_time)#>>'{}' FROM pg_stat_wal_receiver),
    (SELECT to_json(max(modification))#>>'{}' FROM pg_ls_waldir() WHERE length(name) = 24 AND right(name, 16) = (
      SELECT upper(lpad(to_hex(segment / of_four_gb), 8, '0') || lpad(to_hex(segment % of_four_gb), 8, '0'))
      FROM (SELECT div(greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/1', size)::bigint,
        4294967296 / size FROM (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size') s (size)
      ) place (segment, of_four_gb))), '') ELSE '' END,
  'clock', to_json(clock_timestamp())#>>'{}',
  'receiver', coalesce((SELECT status FROM pg_stat_wal_receiver), ''),
  'replayed_at', CASE WHEN pg_is_in_recovery()
    THEN coalesce(to_json(pg_last_xact_replay_timestamp())#>>'{}', '') ELSE '' END,
  'waits_for', CASE WHEN pg_is_in_recovery() THEN '' ELSE current_setting('synchronous_standby_names') END,
  'settings', (SELECT json_object_agg(name, setting ORDER BY name) FROM pg_settings
    WHERE source = 'configuration file'),
  'replicas', coalesce((SELECT json_agg(json_build_object(
      'name', application_name, 'state', state, 'sync_state', sync_state,
      'lag_bytes', coalesce(pg_wal_lsn_diff(sent.lsn, replay_lsn), 0)::bigint,
      'lag_seconds', coalesce(extract(epoch FROM replay_lag), 0),
      'tls', coalesce(ssl.version, ''), 'client', coalesce(ssl.client_dn, '')) ORDER BY application_name)
    FROM pg_stat_replication LEFT JOIN pg_stat_ssl ssl USING (pid)
    WHERE application_name <> 'pg_basebackup'), '[]'),
  'slots', coalesce((SELECT json_agg(json_build_object(
      'name', slot_name, 'active', active,
      'retained_bytes', coalesce(pg_wal_lsn_diff(sent.lsn, restart_lsn), 0)::bigint,
      'bound_bytes', (SELECT nullif(setting, '-1')::bigint * 1048576 FROM pg_settings
        WHERE name = 'max_slot_wal_keep_size'),
      'wal_status', coalesce(wal_status, '')) ORDER BY slot_name)
    FROM pg_replication_slots WHERE slot_type = 'physical'), '[]'))
FROM (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END AS lsn) sent
"""

DATABASES = "SELECT json_agg(datname ORDER BY datname) FROM pg_database WHERE datallowconn AND datname <> 'template1'"
# A collation that something depends on: a column, an index, a domain, a partition's bounds, an expression.
IN_DATABASE = """
SELECT json_build_object(
  'extensions', (SELECT json_agg(extname ORDER BY extname) FROM pg_extension),
  'collations', (SELECT coalesce(json_object_agg(name, json_build_array(collversion, actual)), '{}') FROM (
    SELECT format('%s (in %s)', c.oid::regcollation, current_database()) AS name, collversion,
      pg_collation_actual_version(c.oid) AS actual
    FROM pg_collation c WHERE collversion IS NOT NULL AND EXISTS (
      SELECT FROM pg_depend WHERE refclassid = 'pg_collation'::regclass AND refobjid = c.oid)) used
    WHERE actual IS NOT NULL))
"""
AVAILABLE = "SELECT json_agg(name ORDER BY name) FROM pg_available_extensions"
COLLATIONS = """
SELECT coalesce(json_object_agg(datname, json_build_array(datcollversion, actual)), '{}') FROM (
  SELECT datname, datcollversion, pg_database_collation_actual_version(oid) AS actual FROM pg_database) d
WHERE datcollversion IS NOT NULL AND actual IS NOT NULL
"""
# By way of JSON, since the columns differ from version to version.
LOGICAL_SLOTS = """
SELECT coalesce(json_agg(json_build_object('name', slot->>'slot_name',
  'failover', coalesce((slot->>'failover')::bool, false), 'synced', coalesce((slot->>'synced')::bool, false),
  'temporary', (slot->>'temporary')::bool,
  'lost', coalesce(slot->>'wal_status', '') = 'lost' OR slot->>'invalidation_reason' IS NOT NULL)
  ORDER BY slot->>'slot_name'), '[]')
FROM (SELECT to_jsonb(s) AS slot FROM pg_replication_slots s WHERE slot_type = 'logical') slots
"""
REPLAY = """
SELECT json_build_object(
  'paused', CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END,
  'delay', (SELECT setting::bigint FROM pg_settings WHERE name = 'recovery_min_apply_delay'))
"""
IN_RECOVERY = "SELECT to_json(pg_is_in_recovery())"
USED = """
SELECT coalesce(json_object_agg(application_name, coalesce(client_serial::text, '')), '{}')
FROM pg_stat_replication JOIN pg_stat_ssl USING (pid)
"""
PROMOTE = """
SELECT pg_promote(false) WHERE pg_is_in_recovery();
DO $$ BEGIN FOR i IN 1..{tries} LOOP EXIT WHEN NOT pg_is_in_recovery(); PERFORM pg_sleep(0.005); END LOOP; END $$;
SELECT pg_is_in_recovery();
"""
HISTORY = """
SELECT json_build_object('timeline', timeline_id, 'text',
  pg_read_file('pg_wal/' || upper(lpad(to_hex(timeline_id), 8, '0')) || '.history', 0, 1048576, true))
FROM (SELECT CASE WHEN pg_is_in_recovery()
  THEN greatest(coalesce((SELECT received_tli FROM pg_stat_wal_receiver), 0),
    (SELECT timeline_id FROM pg_control_checkpoint()), (SELECT min_recovery_end_timeline FROM pg_control_recovery()))
  ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END AS timeline_id) now
"""
MARK = "SELECT to_json(pg_create_restore_point('harmony')) FROM pg_current_xact_id()"
