# shellcheck shell=bash
# Set-up shared by scripts/test and scripts/demo: `source` it, then call setup_python, setup_postgresql, setup_pulumi,
# setup_redis, setup_pgbouncer, setup_haproxy, setup_network_tools, setup_faketime, setup_kubernetes_plugin,
# setup_kubernetes as needed. Each does nothing where nothing is missing.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
CACHE=${HARMONY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/harmony-pulumi}
PULUMI_VERSION=3.259.0 # the least version that will do, and the one that is installed
PULUMI_DIR=$CACHE/pulumi-$PULUMI_VERSION

# --- speaking, and leaving nothing behind -----------------------------------------------------

heading() { printf '\n== %s\n' "$*"; }
say() { printf '   %s\n' "$*"; }
fail() {
	printf '\nerror: %s\n' "$*" >&2
	exit 1
}

EXIT_ACTIONS=()
on_exit() { EXIT_ACTIONS+=("$1"); } # a command for `eval`; it finds the exit status in $STATUS
run_exit_actions() {
	STATUS=$?
	trap - EXIT
	local action
	for action in ${EXIT_ACTIONS[@]+"${EXIT_ACTIONS[@]}"}; do eval "$action" || true; done
	exit "$STATUS"
}
trap run_exit_actions EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# step TITLE SECONDS HINT FUNCTION [ARGUMENT...]: run a function of this file in a shell of its own, so
# that one deadline covers all it starts. Its output goes to a log, shown where it fails.
STEP_PID=
stop_step() { [ -z "$STEP_PID" ] || kill "$STEP_PID"; }
on_exit stop_step
step() {
	local title=$1 deadline=$2 hint=$3 start=$SECONDS log last status=0 next=15
	shift 3
	log=$(mktemp "${TMPDIR:-/tmp}/harmony-setup.XXXXXX")
	printf '== %s\n' "$title"
	# shellcheck disable=SC2016 # expanded by the inner shell
	timeout -k 10 "$deadline" bash -c 'source "$0"; "$@"' "$ROOT/scripts/lib.sh" "$@" >"$log" 2>&1 </dev/null &
	STEP_PID=$!
	while kill -0 "$STEP_PID" 2>/dev/null; do
		if ((SECONDS - start >= next)); then
			last=$(tail -n 1 "$log")
			say "$((SECONDS - start)) s: ${last:0:100}"
			next=$((next + 15))
		fi
		sleep 0.2
	done
	wait "$STEP_PID" || status=$?
	STEP_PID=
	if ((status == 0)); then
		rm -f "$log"
		say "done in $((SECONDS - start)) s"
		return
	fi
	{
		printf '\nerror: this step failed: %s\n' "$title"
		((status != 124)) || printf 'It took longer than %s s.\n' "$deadline"
		printf -- '--- the last lines of %s\n' "$log"
		tail -n 20 "$log"
		printf -- '---\nTo do it by hand: %s\n' "$hint"
	} >&2
	return 1
}

# Only one process at a time may work on a folder. Called within a step, whose end lets go of the lock.
lock() {
	mkdir -p "$1"
	exec 9<"$1"
	! command -v flock >/dev/null || flock 9
}

# A new folder of the cache ends with one rename, so an interrupted step leaves nothing half-done.
new_folder() {
	NEW=$(mktemp -d "$CACHE/.new.XXXXXX")
	on_exit "rm -rf '$NEW'"
}
keep_folder() { # FOLDER
	chmod 755 "$NEW"
	rm -rf "$1"
	mv "$NEW" "$1"
}

# What is built is named by what it is built from.
built_dir() { # NAME FILE...
	local inputs
	inputs=$(cat "${@:2}" | sha256sum)
	printf '%s\n' "$CACHE/$1-${inputs:0:12}"
}

# The virtual environment stays first: the language host takes the first python3 on PATH.
put_on_path() { export PATH="$VENV/bin:$1:$PATH"; }

# --- packages of the distribution ----------------------------------------------------------------

can_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

# Only programs are wanted, so a policy-rc.d keeps the packages from starting their services.
apt_install() { # PACKAGE...
	local policy=/usr/sbin/policy-rc.d
	if [ ! -e "$policy" ]; then
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		on_exit "rm -f $policy"
		chmod 755 "$policy"
	fi
	export DEBIAN_FRONTEND=noninteractive
	apt-get -o DPkg::Lock::Timeout=120 update || echo 'apt-get update failed; trying with the package lists that are here'
	apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "$@"
}

# --- Python --------------------------------------------------------------------------------------

PYTHON_HINT='install Python 3.11 or newer with its venv module (Debian, Ubuntu: apt-get install python3 python3-venv; Fedora: dnf install python3)'

# Prints the first Python that is new enough and has the given modules. Each is run, not only looked
# for: a version manager's shim may stand for a Python that is not there.
find_python() { # MODULES (comma-separated)
	local name
	for name in python3.13 python3.12 python3.11 python3; do
		if "$name" -c "import sys, $1; sys.exit(sys.version_info < (3, 11))" >/dev/null 2>&1; then
			command -v "$name"
			return
		fi
	done
	return 1
}

venv_works() { "$VENV/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

create_venv() {
	lock "$ROOT"
	venv_works || "$(find_python venv,ensurepip)" -m venv --clear "$VENV"
}

# What is installed stays right as long as neither pyproject.toml nor the checkout's place changes.
# `dev` contains every other set of extras.
package_state() { printf '%s %s\n' "$(cksum <"$ROOT/pyproject.toml")" "$ROOT"; }
package_installed() { # EXTRAS
	local set
	for set in "$1" dev; do
		[ "$(cat "$VENV/installed-$set" 2>/dev/null)" != "$(package_state)" ] || return 0
	done
	return 1
}

install_package() { # EXTRAS
	lock "$ROOT"
	! package_installed "$1" || return 0
	local state
	state=$(package_state) # as it is before: an edit meanwhile means another installation
	cd "$ROOT"
	"$VENV/bin/python" -m pip install --disable-pip-version-check --progress-bar off -e ".[$1]"
	printf '%s\n' "$state" >"$VENV/installed-$1"
}

setup_python() { # [EXTRAS]
	local extras=${1:-dev}
	if ! venv_works; then
		if ! find_python venv,ensurepip >/dev/null; then
			can_apt || fail "no Python >= 3.11 with venv and ensurepip was found: $PYTHON_HINT"
			step 'Install Python with apt-get' 600 "$PYTHON_HINT" apt_install python3 python3-venv
			find_python venv,ensurepip >/dev/null || fail "this distribution's Python is too old: $PYTHON_HINT"
		fi
		step 'Create the virtual environment .venv' 120 "$PYTHON_HINT" create_venv
	fi
	put_on_path "$VENV/bin"
	package_installed "$extras" ||
		step "Install the package and its '$extras' extras" 900 'look at the log; pip must reach a package index' \
			install_package "$extras"
}

# --- PostgreSQL ----------------------------------------------------------------------------------

POSTGRESQL_HINT='install a PostgreSQL server from 13 to 18 with its client programs (Debian, Ubuntu: apt-get install postgresql; Fedora: dnf install postgresql-server; macOS: brew install postgresql@17) and put its bin folder on PATH'

# Prints the folder with all the programs of one supported version: the one on PATH first (initdb may
# be a link into the others' folder), then the newest of the distribution's.
find_postgresql() {
	local found dirs dir program major
	found=$(command -v initdb || true)
	dirs=$(printf '%s\n' /usr/lib/postgresql/*/bin /usr/pgsql-*/bin | sort -rV)
	[ -z "$found" ] || dirs=$(dirname "$(readlink -f "$found")")$'\n'$dirs
	while read -r dir; do
		for program in initdb postgres pg_ctl pg_basebackup psql; do
			[ -x "$dir/$program" ] || continue 2
		done
		major=$("$dir/postgres" --version | sed -E 's/^[^0-9]*([0-9]+).*/\1/')
		if ((major >= 13 && major <= 18)); then
			printf '%s\n' "$dir"
			return
		fi
	done <<<"$dirs"
	return 1
}

# No cluster of the distribution's own: nobody asked for one.
install_postgresql() {
	mkdir -p /etc/postgresql-common/createcluster.d
	echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/harmony.conf
	apt_install postgresql
}

setup_postgresql() {
	local dir
	if ! dir=$(find_postgresql); then
		can_apt || fail "no PostgreSQL server was found: $POSTGRESQL_HINT"
		step 'Install PostgreSQL with apt-get' 600 "$POSTGRESQL_HINT" install_postgresql
		dir=$(find_postgresql) || fail "the distribution's PostgreSQL will not do: $POSTGRESQL_HINT"
	fi
	# PostgreSQL refuses to run as root.
	[ "$(id -u)" != 0 ] || id postgres >/dev/null 2>&1 ||
		fail "run this as an ordinary user, or create the user 'postgres' (useradd --system postgres)"
	put_on_path "$dir"
}

# --- Pulumi --------------------------------------------------------------------------------------

PULUMI_HINT="install Pulumi $PULUMI_VERSION or newer with its Python language host (curl -fsSL https://get.pulumi.com | sh) and put it on PATH, or install Go 1.26 so that it can be built"

pulumi_works() { # [FOLDER]: without one, what is on PATH
	local dir=${1:+$1/} version
	command -v "${dir}pulumi-language-python" >/dev/null || return 1
	version=$(PULUMI_SKIP_UPDATE_CHECK=1 timeout 30 "${dir}pulumi" version 2>/dev/null) || return 1
	printf '%s\n' "$PULUMI_VERSION" "${version#v}" | sort -CV
}

download_pulumi() {
	local installer
	lock "$CACHE"
	! pulumi_works "$PULUMI_DIR/bin" || return 0
	new_folder
	installer=$(curl -fsSL --connect-timeout 10 --max-time 60 https://get.pulumi.com)
	sh -s -- --version "$PULUMI_VERSION" --install-root "$NEW" --no-edit-path <<<"$installer"
	pulumi_works "$NEW/bin"
	keep_folder "$PULUMI_DIR"
}

build_pulumi() {
	lock "$CACHE"
	! pulumi_works "$PULUMI_DIR/bin" || return 0
	new_folder
	"$ROOT/scripts/pulumi/build" pulumi "$NEW/bin"
	touch "$NEW/built-from-modules"
	pulumi_works "$NEW/bin"
	keep_folder "$PULUMI_DIR"
}

installer_reachable() {
	command -v curl >/dev/null && curl -fsSL --connect-timeout 10 --max-time 30 -o /dev/null https://get.pulumi.com 2>/dev/null
}

setup_pulumi() {
	export PULUMI_SKIP_UPDATE_CHECK=1
	! pulumi_works || return 0
	if ! pulumi_works "$PULUMI_DIR/bin"; then
		if installer_reachable; then
			step "Install Pulumi $PULUMI_VERSION into $PULUMI_DIR" 600 "$PULUMI_HINT" download_pulumi
		elif command -v go >/dev/null; then
			say 'The official installer cannot be reached.'
			step "Build Pulumi $PULUMI_VERSION from Go modules into $PULUMI_DIR (once, some 4 minutes)" 1800 "$PULUMI_HINT" build_pulumi
		else
			fail "there is no Pulumi, its installer cannot be reached, and there is no Go to build it with: $PULUMI_HINT"
		fi
	fi
	put_on_path "$PULUMI_DIR/bin"
	# Where the installer could not be reached, neither can the plugins' server: do not wait for it.
	if [ -e "$PULUMI_DIR/built-from-modules" ]; then
		export PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION=${PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION:-true}
	fi
}

# --- Pulumi's Kubernetes plugin, for the tests on clusters --------------------------------------------

KUBERNETES_PLUGIN_HINT="install it (pulumi plugin install resource kubernetes VERSION, as 'pip show pulumi-kubernetes' has it), or install Go 1.26 so that it can be built"

kubernetes_plugin_dir() (cd "$ROOT/scripts/pulumi" && built_dir pulumi-kubernetes build resource-kubernetes/*)

in_tests() { (cd "$ROOT" && "$VENV/bin/python" -c "from tests.plugins import found; $1"); }
have_kubernetes_plugin() { in_tests 'raise SystemExit(found.official_plugin() is None)'; }

download_kubernetes_plugin() { pulumi plugin install resource kubernetes "$(in_tests 'print(found.WANTED)')"; }

build_kubernetes_plugin() {
	lock "$CACHE"
	[ ! -d "$(kubernetes_plugin_dir)" ] || return 0
	new_folder
	"$ROOT/scripts/pulumi/build" kubernetes "$NEW"
	keep_folder "$(kubernetes_plugin_dir)"
}

# What was built is in KUBERNETES_PLUGIN_DIR, not on PATH: Pulumi warns of that, at each command. Without it, tests run
# with a stand-in (tests/plugins).
setup_kubernetes_plugin() {
	local dir
	! have_kubernetes_plugin || return 0
	dir=$(kubernetes_plugin_dir)
	if [ -d "$dir" ]; then
		export KUBERNETES_PLUGIN_DIR=$dir
	elif installer_reachable; then
		step "Install Pulumi's Kubernetes plugin" 600 "$KUBERNETES_PLUGIN_HINT" download_kubernetes_plugin
	elif command -v go >/dev/null; then
		step "Build Pulumi's Kubernetes plugin from Go modules into $dir (once, some 4 minutes)" 1800 "$KUBERNETES_PLUGIN_HINT" build_kubernetes_plugin
		export KUBERNETES_PLUGIN_DIR=$dir
	else
		say "Pulumi's Kubernetes plugin cannot be had, so tests run with a stand-in: $KUBERNETES_PLUGIN_HINT"
	fi
}

# --- Redis, for the test of an extension ------------------------------------------------------------

REDIS_HINT='install Redis or Valkey (Debian, Ubuntu: apt-get install redis-server) and put redis-server or valkey-server on PATH'

setup_redis() {
	command -v redis-server valkey-server >/dev/null && return
	can_apt || fail "no redis-server or valkey-server was found: $REDIS_HINT"
	step 'Install Redis with apt-get' 600 "$REDIS_HINT" apt_install redis-server
}

# --- PgBouncer, for endpoints -----------------------------------------------------------------------

PGBOUNCER_HINT='install PgBouncer (Debian, Ubuntu: apt-get install pgbouncer)'

setup_pgbouncer() {
	command -v pgbouncer /usr/sbin/pgbouncer >/dev/null && return
	can_apt || fail "no pgbouncer was found: $PGBOUNCER_HINT"
	step 'Install PgBouncer with apt-get' 600 "$PGBOUNCER_HINT" apt_install pgbouncer
}

# --- HAProxy, which is what OpenShift's router is, for the test of routes ----------------------------

HAPROXY_HINT='install HAProxy (Debian, Ubuntu: apt-get install haproxy)'

setup_haproxy() {
	command -v haproxy /usr/sbin/haproxy >/dev/null && return
	can_apt || fail "no haproxy was found: $HAPROXY_HINT"
	step 'Install HAProxy with apt-get' 600 "$HAPROXY_HINT" apt_install haproxy
}

# --- networks between hosts that can be cut, for the tests of faults --------------------------------

NETWORK_HINT='install iproute2 and iptables (Debian, Ubuntu: apt-get install iproute2 iptables)'

# Only root can make a network namespace: without it, these tests are skipped, and say so.
setup_network_tools() {
	[ "$(id -u)" = 0 ] || return 0
	local path=$PATH:/usr/sbin:/sbin
	PATH=$path command -v ip >/dev/null && PATH=$path command -v tc >/dev/null && PATH=$path command -v iptables >/dev/null && return
	can_apt || fail "ip, tc or iptables was not found: $NETWORK_HINT"
	step 'Install iproute2 and iptables with apt-get' 600 "$NETWORK_HINT" apt_install iproute2 iptables
}

# --- clocks of chosen processes that are wrong, for the tests of faults ------------------------------

FAKETIME_HINT='install libfaketime (Debian, Ubuntu: apt-get install faketime)'

setup_faketime() {
	command -v faketime >/dev/null && return
	can_apt || fail "no faketime was found: $FAKETIME_HINT"
	step 'Install libfaketime with apt-get' 600 "$FAKETIME_HINT" apt_install faketime
}

# --- Kubernetes clusters of our own, for the end-to-end tests ------------------------------------------

KUBERNETES_HINT='run scripts/kubernetes/build as root on Debian or Ubuntu with Go 1.26, or give two clusters: HARMONY_E2E_KUBECONFIGS=ONE:OTHER'

kubernetes_dir() (cd "$ROOT/scripts/kubernetes" && built_dir kubernetes build pause.c ./*/*)
kubernetes_built() { [ -e "$(kubernetes_dir)/versions" ]; }

# Prints the folder of the plugins for pods' networks: Debian's, Fedora's or upstream's.
find_cni() {
	local dir
	for dir in /usr/lib/cni /usr/libexec/cni /opt/cni/bin; do
		[ ! -x "$dir/ptp" ] || { printf '%s\n' "$dir" && return; }
	done
	return 1
}

have_programs() { # PROGRAM...
	local name
	for name in "$@"; do PATH=$PATH:/usr/sbin:/sbin command -v "$name" >/dev/null || return 1; done
}

# What a cluster runs with, and what its parts are built with.
KUBERNETES_TOOLS=(containerd runc iptables ip openssl nsenter unshare findmnt pgrep)
KUBERNETES_BUILDERS=(debootstrap gcc)

have_kubernetes_tools() { have_programs "${KUBERNETES_TOOLS[@]}" && find_cni >/dev/null; }

setup_kubernetes_tools() {
	[ "$(id -u)" = 0 ] || fail 'only root can make clusters: a network namespace is needed'
	! have_kubernetes_tools || return 0
	can_apt || fail "one of ${KUBERNETES_TOOLS[*]}, or the CNI plugin ptp, was not found: $KUBERNETES_HINT"
	step 'Install what clusters run with' 600 "$KUBERNETES_HINT" \
		apt_install containerd runc containernetworking-plugins iptables iproute2 openssl util-linux procps
}

setup_kubernetes_builders() {
	command -v go >/dev/null || fail "there is no Go to build Kubernetes with: $KUBERNETES_HINT"
	! have_programs "${KUBERNETES_BUILDERS[@]}" || return 0
	can_apt || fail "one of ${KUBERNETES_BUILDERS[*]} was not found: $KUBERNETES_HINT"
	step 'Install what Kubernetes is built with' 600 "$KUBERNETES_HINT" apt_install debootstrap gcc libc6-dev
}

setup_kubernetes() {
	[ -z "${HARMONY_E2E_KUBECONFIGS:-}" ] || return 0
	setup_kubernetes_tools
	kubernetes_built ||
		step "Build Kubernetes into $(kubernetes_dir) (once, some 10 minutes)" 7200 "$KUBERNETES_HINT" "$ROOT/scripts/kubernetes/build"
}
