#!/usr/bin/env bash
# A real Slurm on one machine, as root and without systemd: three nodes, each a slurmd on loopback.
#
#   tests/slurm/cluster.sh COMMAND...    installs what is missing (Debian), starts it, runs the command with SLURM_CONF and
#                                        DCVIT_SLURM set, stops it; the command's exit code
set -euo pipefail

if [[ $# -eq 0 ]]; then
    sed -n '2,5p' "$0"
    exit 2
fi
if [[ $(id -u) -ne 0 ]]; then
    echo "$0: only root can start slurmd; run the tests in a container, as root" >&2
    exit 3
fi

if ! command -v slurmctld slurmd sbatch mungekey >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    # images of containers refuse to start services when they are installed, which suits us
    apt-get -qq install -y --no-install-recommends slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge >/dev/null
fi

place=$(mktemp -d /tmp/dcvit-slurm-XXXXXX)
chmod 755 "$place"
mkdir "$place/state" "$place"/spool-n{1,2,3}
export SLURM_CONF=$place/slurm.conf DCVIT_SLURM=1
cat >"$SLURM_CONF" <<CONF
ClusterName=dcvit
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort=16817
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool-%n
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd-%n.pid
SlurmctldLogFile=$place/slurmctld.log
SlurmdLogFile=$place/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
# a job that is preempted gets the signal that it asked for, and GraceTime to react
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
# a node that was set down stays down
ReturnToService=1
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_min_interval=100000
SlurmctldTimeout=30
SlurmdTimeout=20
KillWait=5
MinJobAge=3600
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=16818 CPUs=4 RealMemory=4000 State=UNKNOWN
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=16819 CPUs=4 RealMemory=4000 State=UNKNOWN
NodeName=n3 NodeHostname=localhost NodeAddr=127.0.0.1 Port=16820 CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=quiet Nodes=n3 MaxTime=INFINITE State=UP
CONF

own_munged=
stop() {
    local file
    scancel --user=root 2>/dev/null || true
    sleep 1
    for file in "$place"/slurmd-n{1,2,3}.pid "$place"/slurmctld.pid; do
        [[ -s $file ]] && kill "$(<"$file")" 2>/dev/null || true
    done
    [[ -n $own_munged ]] && kill "$(</run/munge/munged.pid)" 2>/dev/null || true
    sleep 2
    rm -rf "$place"
}
trap stop EXIT

mkdir -p /run/munge
chown munge:munge /run/munge
chmod 755 /run/munge
[[ -s /etc/munge/munge.key ]] || mungekey --create
if ! munge --no-input 2>/dev/null | unmunge >/dev/null 2>&1; then
    runuser -u munge -- /usr/sbin/munged
    own_munged=1
fi
slurmctld -f "$SLURM_CONF" -c
for node in n1 n2 n3; do slurmd -f "$SLURM_CONF" -N "$node"; done
for _ in $(seq 60); do
    [[ $(sinfo --noheader --format=%t 2>/dev/null | sort -u) == idle ]] && break
    sleep 0.5
done
sinfo

"$@"
