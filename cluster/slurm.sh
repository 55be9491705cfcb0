#!/bin/bash
# A sweep as a Slurm job: one Ray instance a node, for this job alone, and gone when it ends.
#
# gcsr must be installed where every node finds it, the home folder be shared, and --out be seen by every node.
# Submit from a shell in which gcsr's environment is active: Slurm passes it on.
#
#   sbatch cluster/slurm.sh sweep digits --out /shared/runs/digits --resume
#   sbatch --nodes=4 --time=2:00:00 cluster/slurm.sh search digits --out /shared/runs/search --trials 64 --resume
#
# Two minutes before the time limit, and on `scancel --batch --signal=TERM JOB`, the sweep ends as with Ctrl-C: what has
# ended is stored, and the same line goes on. --resume is there from the start because Slurm may requeue the job itself.

#SBATCH --job-name=gcsr
#SBATCH --nodes=2                    # <-
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8            # <- of each node
#SBATCH --gpus-per-node=1            # <- delete this line for CPUs alone
#SBATCH --time=8:00:00               # <-
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
umask 077
command -v ray > /dev/null || { echo "slurm.sh: no ray in PATH: submit with gcsr's environment active" >&2; exit 2; }

# The secret that the cluster asks of everybody: without it, any user of these nodes could run code as you.
test -s ~/.ray/auth_token || ray get-auth-token --generate > /dev/null
chmod 600 ~/.ray/auth_token

# This script runs on the job's first node, which becomes the head. What its own name leads to may be loopback there.
head=$(getent ahostsv4 "$(hostname)" | awk '$1 !~ /^127\./ { print $1; exit }') || true
head=${head:-$(hostname -I | awk '{ print $1 }')}
port=$((20000 + SLURM_JOB_ID % 2500 * 4)) # four a job, so that jobs that share a node do not meet
nodes=$SLURM_JOB_NUM_NODES

unset OMP_NUM_THREADS # trials set their own number of threads
export RAY_ADDRESS=$head:$port RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it from sbatch by itself
options=(
  --block --num-cpus="$SRUN_CPUS_PER_TASK" --object-store-memory=1000000000
  --dashboard-agent-listen-port=$((port + 1)) --min-worker-port=0 --max-worker-port=0 # 0: any that is free
)

# Not `ray symmetric-run`: it refuses nodes on which anybody runs Ray, ends with `ray stop`, which stops your other jobs
# there too, reports failure after a sweep that went well, and keeps the other nodes for a minute after the end.
folder=$(mktemp -d /tmp/gcsr-XXXXXX) # Ray's logs and sockets, where no other user reads them
ulimit -n 65536 2> /dev/null || true
ray start --head --node-ip-address="$head" --port="$port" --temp-dir="$folder" \
  --dashboard-host=127.0.0.1 --dashboard-port=$((port + 2)) --ray-client-server-port=$((port + 3)) \
  "${options[@]}" > "$folder/start.log" 2>&1 &
ray=$!
# shellcheck disable=SC2317 # the trap calls it
finish() {
  kill "$ray" 2> /dev/null || true
  if ((nodes > 1)); then scancel --quiet --signal=TERM "$SLURM_JOB_ID.0" 2> /dev/null || true; fi # the srun below
  for _ in {1..20}; do [ -z "$(jobs -rp)" ] || sleep 1; done # what is left then, Slurm ends with the job
  rm -rf "$folder"
}
trap finish EXIT

until ray health-check --address="$RAY_ADDRESS" 2> /dev/null; do
  kill -0 "$ray" 2> /dev/null || { cat "$folder/start.log" >&2; exit 1; }
  sleep 1
done
if ((nodes > 1)); then
  # shellcheck disable=SC2016 # expanded on the nodes
  srun --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --relative=1 --kill-on-bad-exit=0 --wait=0 bash -c '
    folder=$(mktemp -d /tmp/gcsr-XXXXXX)
    trap "rm -rf $folder" EXIT
    trap "ended=yes" TERM
    ulimit -n 65536 2> /dev/null
    ray start --address="$RAY_ADDRESS" --temp-dir="$folder" "$@" > "$folder/start.log" 2>&1 & wait $!
    [ -n "${ended-}" ] || tail -n 20 "$folder/start.log" >&2
    wait
  ' node "${options[@]}" &
fi
python -c "
import time, ray
ray.init(logging_level='ERROR', log_to_driver=False)
end = time.monotonic() + 300
while len(ray.nodes()) < $nodes and time.monotonic() < end:
    time.sleep(1)
print(f'slurm.sh: {len(ray.nodes())} of $nodes nodes take part', flush=True)
"

export GCSR_RESUME_COMMAND="sbatch cluster/slurm.sh$(printf ' %q' "$@")"
[[ " $* " == *" --resume "* ]] || GCSR_RESUME_COMMAND+=" --resume"
python -m cluster.run "$@" &
sweep=$!
trap 'signalled=yes; kill -TERM $sweep 2> /dev/null || true' TERM # to the sweep alone: to end well it needs Ray
signalled=yes code=0
while [ -n "$signalled" ]; do # a signal ends a wait before its time
  signalled='' code=0
  wait $sweep || code=$?
done
exit $code
