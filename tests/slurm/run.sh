#!/usr/bin/env bash
# A real SLURM of one node for the length of one command: run.sh COMMAND...
#
# It has a network, a host name and mounts of its own (unshare), so nothing of the machine is changed and no service has
# to run; needs root. Where something is missing that cannot be had, it says so and ends with 0: skipped.
set -euo pipefail

skipped() {
  echo "slurm: skipped: $1"
  exit 0
}

if [ "${1:-}" != --inside ]; then
  [ "$(id -u)" = 0 ] || skipped "needs root, for a network of its own"
  command -v unshare >/dev/null || skipped "there is no unshare"
  unshare --net --uts --mount true 2>/dev/null || skipped "unshare is not allowed here"
  if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null || ! command -v ip >/dev/null; then
    command -v apt-get >/dev/null || skipped "no slurmctld, and no apt-get to install it"
    timeout 60 apt-get update -qq >/dev/null 2>&1 || true
    # RUNLEVEL=1: Debian else starts what it installs
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive timeout 120 \
      apt-get install -y -qq --no-install-recommends slurm-wlm munge iproute2 >/dev/null 2>&1 ||
      skipped "apt-get cannot install slurm-wlm, munge and iproute2"
  fi
  exec unshare --net --uts --mount bash "$0" --inside "$@"
fi
shift

PATH=$PATH:/usr/sbin:/sbin
work=$(mktemp -d)
hostname node1
ip link set lo up
ip address add 10.77.0.1/24 dev lo  # with 127.0.0.1 alone the look-up of the node's name fails
printf '127.0.0.1 localhost\n10.77.0.1 node1\n' >"$work/hosts"
mount --bind "$work/hosts" /etc/hosts
mkdir -p /run/munge /etc/munge
mount -t tmpfs -o mode=755 tmpfs /run/munge
mount -t tmpfs -o mode=700 tmpfs /etc/munge
dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 status=none
chmod 400 /etc/munge/munge.key
mkdir "$work/state" "$work/spool"

cat >"$work/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=node1(10.77.0.1)
AuthType=auth/munge
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
NodeName=node1 NodeAddr=10.77.0.1 CPUs=2 RealMemory=4000
PartitionName=test Nodes=node1 Default=YES State=UP
CONF
export SLURM_CONF=$work/slurm.conf

started=()
stop() {
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  umount /etc/hosts 2>/dev/null || true
  rm -rf "$work"
}
trap stop EXIT
munged --foreground --force --key-file=/etc/munge/munge.key --pid-file="$work/munged.pid" \
  --log-file="$work/munged.log" --seed-file="$work/munged.seed" >/dev/null 2>&1 &
started+=($!)
for _ in $(seq 50); do [ -S /run/munge/munge.socket.2 ] && break; sleep 0.1; done
slurmctld -D >"$work/slurmctld.log" 2>&1 &
started+=($!)
slurmd -D -N node1 >"$work/slurmd.log" 2>&1 &
started+=($!)
for _ in $(seq 150); do
  if [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ]; then
    "$@"
    exit
  fi
  sleep 0.2
done
echo "slurm: the node did not come up" >&2
tail -n 5 "$work"/*.log >&2
exit 1
