#!/usr/bin/env bash
# A streaming pair of PostgreSQL servers by hand: the same acts and settings as harmony_pulumi's, and nothing
# between the tools and the machine. It prints each phase and its microseconds.
#   usage: bare_pair.sh BIN FOLDER PRIMARY_PORT REPLICA_PORT     as the OS user that is to own the servers
set -euo pipefail
umask 077
bin=$1 folder=$2 primary_port=$3 replica_port=$4
conninfo="host=localhost port=$primary_port user=replicator sslmode=verify-full sslrootcert=$folder/ca.crt"
conninfo+=" sslcert=$folder/client.crt sslkey=$folder/client.key application_name=replica connect_timeout=10"

began=${EPOCHREALTIME/[.,]/}
phase() { # NAME: what was done since the last call
	local now=${EPOCHREALTIME/[.,]/}
	printf '%s\t%d\n' "$1" $((now - began))
	began=$now
}

new_key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc)
certify() { # NAME COMMON_NAME EXTENSIONS
	openssl req "${new_key[@]}" -subj "/CN=$2" -keyout "$folder/$1.key" -out "$folder/$1.csr"
	openssl x509 -req -in "$folder/$1.csr" -CA "$folder/ca.crt" -CAkey "$folder/ca.key" -CAcreateserial -days 365 \
		-extfile <(printf 'basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n%b' "$3") \
		-out "$folder/$1.crt"
} 2>/dev/null

configure() { # MEMBER PORT
	cat >"$folder/$1/data/postgresql.conf" <<-END
		log_line_prefix = '%m [%p] %q%u@%d '
		log_timezone = 'Etc/UTC'
		lc_messages = 'C'
		max_wal_size = '1GB'
		wal_retrieve_retry_interval = '500ms'
		shared_buffers = '128MB'
		timezone = 'Etc/UTC'
		cluster_name = '$1'
		listen_addresses = 'localhost'
		port = $2
		unix_socket_directories = '$folder/$1/run'
		hot_standby = on
		max_slot_wal_keep_size = '10GB'
		password_encryption = 'scram-sha-256'
		ssl = on
		ssl_ca_file = '$folder/ca.crt'
		ssl_cert_file = '$folder/$1.crt'
		ssl_key_file = '$folder/$1.key'
	END
	cat >"$folder/$1/data/pg_hba.conf" <<-END
		local all postgres peer map=bare
		hostssl replication replicator all cert
		hostssl postgres replicator all cert
		local replication all reject
		host replication all all reject
		host all replicator all reject
		hostssl all all 0.0.0.0/0 scram-sha-256
		hostssl all all ::/0 scram-sha-256
	END
	echo "bare \"$(id -un)\" postgres" >"$folder/$1/data/pg_ident.conf"
}

start() { # MEMBER
	"$bin/pg_ctl" start -D "$folder/$1/data" -l "$folder/$1/log" -s -w
}

sql() {
	"$bin/psql" -X -q -A -t -v ON_ERROR_STOP=1 -h "$folder/primary/run" -p "$primary_port" -U postgres -d postgres
}

mkdir -p "$folder"/{primary,replica}/run
"$bin/initdb" -D "$folder/primary/data" -U postgres --data-checksums --encoding=UTF8 --locale=C.UTF-8 \
	--auth-local=peer --auth-host=scram-sha-256 >"$folder/initdb.log"
phase 'primary: initdb'

openssl req -x509 "${new_key[@]}" -days 3650 -subj /CN=bare -keyout "$folder/ca.key" -out "$folder/ca.crt" \
	-addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
for member in primary replica; do
	certify "$member" localhost 'extendedKeyUsage=serverAuth\nsubjectAltName=DNS:localhost\n'
done
certify client replicator 'extendedKeyUsage=clientAuth\n'
phase 'certificates'

configure primary "$primary_port"
start primary
phase 'primary: start'

password=$(openssl rand -hex 24)
sql <<-END
	CREATE ROLE replicator LOGIN REPLICATION;
	CREATE ROLE orders LOGIN PASSWORD '$password';
	CREATE DATABASE orders OWNER orders;
END
phase 'primary: populate'

"$bin/pg_basebackup" -D "$folder/replica/data" -d "$conninfo" -X stream -C -S replica -c fast -P -w 2>"$folder/clone.log"
phase 'replica: clone'

configure replica "$replica_port"
printf "primary_conninfo = '%s'\nprimary_slot_name = 'replica'\n" "$conninfo" >>"$folder/replica/data/postgresql.conf"
touch "$folder/replica/data/standby.signal"
start replica
phase 'replica: start'

deadline=$((SECONDS + 60))
until [ "$(sql <<<"SELECT state FROM pg_stat_replication WHERE application_name = 'replica'")" = streaming ]; do
	((SECONDS < deadline)) || {
		echo 'the replica does not stream' >&2
		exit 1
	}
	sleep 0.05
done
phase 'replica: stream'
