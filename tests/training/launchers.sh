#!/usr/bin/env bash
# Starts a run of two processes by Open MPI and by Slurm, with no --distributed flags, and compares their fingerprints with
# that of two processes started by hand. As root on Debian, with the packages openmpi-bin, slurm-wlm and munge; Slurm is
# set up on this machine alone, in a temporary folder.
#
#     PYTHON=.venv/bin/python tests/training/launchers.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$(realpath --no-symlinks "${PYTHON:-python}")
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=1 PYTHONPATH=$PWD
work=$(mktemp -d)
daemons=()
trap 'kill "${daemons[@]}" 2>/dev/null || true; rm -rf "$work"' EXIT
run=("$python" -m experiments.quickstart --train.steps 20 --train.evaluate-every 10)

fingerprint() { "$python" -c 'import json, sys; r = json.load(open(sys.argv[1] + "/result.json")); assert r["devices"]["processes"] == 2; print(r["fingerprint"])' "$1"; }

for id in 0 1; do
  "${run[@]}" --workdir "$work/hand" --distributed.coordinator 127.0.0.1:9917 --distributed.num-processes 2 \
    --distributed.process-id $id >"$work/hand$id.log" 2>&1 &
  started[id]=$!
done
wait "${started[@]}"
expected=$(fingerprint "$work/hand")
echo "by hand:  $expected"

# Unbound, each process has all cores, as by hand: another number of threads rounds otherwise.
mpirun --allow-run-as-root --bind-to none -n 2 "${run[@]}" --workdir "$work/mpi" >"$work/mpi.log" 2>&1
echo "Open MPI: $(fingerprint "$work/mpi")"
[ "$(fingerprint "$work/mpi")" = "$expected" ]

mkdir -p /run/munge "$work/slurm"
chown munge: /run/munge
pgrep -x munged >/dev/null || runuser -u munge -- munged
cat >"$work/slurm/slurm.conf" <<CONF
ClusterName=here
SlurmctldHost=$(hostname -s)
SlurmUser=root
StateSaveLocation=$work/slurm
SlurmdSpoolDir=$work/slurm
SlurmctldPidFile=$work/slurm/slurmctld.pid
SlurmdPidFile=$work/slurm/slurmd.pid
SlurmctldLogFile=$work/slurm/slurmctld.log
SlurmdLogFile=$work/slurm/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
NodeName=$(hostname -s) CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
CONF
export SLURM_CONF=$work/slurm/slurm.conf
slurmctld -D >/dev/null 2>&1 &
daemons+=($!)
slurmd -D >/dev/null 2>&1 &
daemons+=($!)
for _ in $(seq 60); do
  sinfo -h -o %T 2>/dev/null | grep -q idle && break
  sleep 1
done
srun -n 2 "${run[@]}" --workdir "$work/slurm-run" >"$work/slurm.log" 2>&1 || { cat "$work/slurm.log" "$work/slurm/"*.log; exit 1; }
echo "Slurm:    $(fingerprint "$work/slurm-run")"
[ "$(fingerprint "$work/slurm-run")" = "$expected" ]
