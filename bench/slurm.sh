#!/bin/bash
# A Slurm of one machine, and recipes/slurm/ preempted on it: does every run end as if it had not been?
#
#     apt-get install slurm-wlm munge
#     bench/slurm.sh PROJECT OUTPUT train|array    # as root, from the checkout, with mrpo's Python first on PATH
#
# train: PROJECT holds mrpo.yaml (models by absolute paths), recipe.yaml (of a minute or two; save_steps: 10,
# logging_steps: 1, as a stopped run logs its last step) and a filled cache. Jobs run in the partition `spot`; a job of the partition `urgent` takes the machine:
# Slurm sends SIGTERM, SIGKILL 30 s later, and puts the job back.
#   whole    one task, undisturbed             preempted  one task, preempted: SIGTERM is enough
#   killed   one task, deaf to SIGTERM: SIGKILL after 30 s
#   whole2   two tasks of gloo, undisturbed    preempted2 two tasks, preempted
# array: PROJECT holds mrpo.yaml, whose only reference is `one`, and `whole`, a cache of it: bench/many_machines.py
# makes such a project. Of four tasks, one is put back by `scontrol requeue` while it computes, and one killed.
# What the cache then holds, beside `whole`, goes to docs/many_machines.json.
# OUTPUT keeps the logs and the verdict.
set -eu
checkout=$PWD project=$(realpath "$1")
mkdir -p "$2" && out=$(realpath "$2")
trial=$3
export SLURM_CONF=$out/slurm.conf PYTHONPATH=$checkout:$checkout/tests OMP_NUM_THREADS=1
export PYTHONHASHSEED=0  # peft writes an adapter's layers as a set, in an order of each process's own
host=$(hostname)

configure() {
  mkdir -p "$out/state" "$out/spool" "$out/bin"
  cat > "$SLURM_CONF" <<END
ClusterName=try
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthInfo=socket=$out/munge.socket
StateSaveLocation=$out/state
SlurmdSpoolDir=$out/spool
SlurmctldPidFile=$out/slurmctld.pid
SlurmdPidFile=$out/slurmd.pid
SlurmctldLogFile=$out/slurmctld.log
SlurmdLogFile=$out/slurmd.log
SlurmctldPort=26917
SlurmdPort=26918
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc --all)
PartitionName=spot Nodes=$host Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=urgent Nodes=$host PriorityTier=9 PreemptMode=OFF
END
  cat > "$out/bin/mrpo" <<'END'
#!/bin/bash
# mrpo of this checkout; with DEAF, one whose step is longer than Slurm waits
exec python -c "
import os, signal, sys
if os.environ.get('DEAF'):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.execv(sys.executable, [sys.executable, '-m', 'mrpo_tools', *sys.argv[1:]])" "$@"
END
  chmod +x "$out/bin/mrpo"
  head -c 1024 /dev/urandom > "$out/munge.key" && chmod 400 "$out/munge.key"
}

start() {
  munged --force --key-file="$out/munge.key" --socket="$out/munge.socket" \
    --pid-file="$out/munged.pid" --log-file="$out/munged.log" --seed-file="$out/munged.seed"
  slurmctld -f "$SLURM_CONF" && slurmd -f "$SLURM_CONF"
  until sinfo --noheader --states=idle | grep -q spot; do sleep 1; done
}

stop() {
  squeue --noheader --format=%A | xargs --no-run-if-empty scancel
  sleep 2
  for name in slurmd slurmctld munged; do
    [ ! -e "$out/$name.pid" ] || kill "$(cat "$out/$name.pid")" || true
  done
}

# submit NAME TASKS SCRIPT [ENVIRONMENT]: a committed script, on this machine's size
submit() {
  sbatch --parsable --job-name="$1" --nodes=1 --ntasks-per-node="$2" --cpus-per-task=1 \
    --gpus-per-node=0 --time=60 --export="ALL,${4:-NONE=}" --output="$out/$1.log" \
    "$checkout/recipes/slurm/$3.sbatch" recipe.yaml "$out/$1"
}

state() { scontrol show job "$1" | grep -oE '(JobState|Restarts|ExitCode)=[^ ]+' | tr '\n' ' '; }
until_done() { until scontrol show job "$1" | grep -qE 'JobState=(COMPLETED|FAILED|CANCELLED)'; do sleep 1; done; }

# preempt JOB NAME: another's job takes the machine once there is a checkpoint
preempt() {
  until compgen -G "$out/$2/checkpoint-*/seal.json" > /dev/null; do sleep 0.2; done
  sbatch --parsable --partition=urgent --exclusive --job-name=urgent --output=/dev/null \
    --wrap "sleep 5" > /dev/null
  echo "$(date +%T) $2: preempted at $(basename "$(ls -d "$out/$2"/checkpoint-* | sort -V | tail -1)")"
  until scontrol show job "$1" | grep -q 'Restarts=1'; do sleep 0.2; done
  echo "$(date +%T) $2: put back: $(state "$1")"
  until_done "$1"
  echo "$(date +%T) $2: done: $(state "$1")"
}

compare() {
  python - "$out/$1" "$out/$2" <<'END'
import sys
from pathlib import Path
from kill_training import contents
whole, other = (contents(Path(path)) for path in sys.argv[1:])
names = sorted(whole.keys() | other.keys())
unequal = [name for name in names if whole.get(name) != other.get(name)]
print(f"{Path(sys.argv[2]).name} against {Path(sys.argv[1]).name}: {len(names)} files, "
      f"{len(unequal)} unequal {' '.join(unequal)}")
END
}

# computing TASK: the process id of a task's mrpo, once it is in the midst of its rows
computing() {
  local found= process
  until [ -n "$found" ]; do
    sleep 0.5
    for process in $(pgrep -f "precompute --ref one --shard auto"); do
      if tr '\0' '\n' 2> /dev/null < "/proc/$process/environ" | grep -qx "SLURM_ARRAY_TASK_ID=$1" &&
        [ "$(ps -o cputimes= -p "$process")" -ge 10 ]; then found=$process; fi
    done
  done
  echo "$found"
}

# the array of phase 1, into an empty cache: task 2 is put back while it computes, task 3 killed
array() {
  [ ! -e "$project/cache" ] || { echo "$project/cache is there already" && exit 2; }
  cd "$project"
  started=$(date +%s)
  job=$(sbatch --parsable --array=1-4 --gpus-per-node=0 --cpus-per-task=1 --time=60 \
    --output="$out/%a.log" "$checkout/recipes/slurm/precompute_array.sbatch" one)
  computing 2 > /dev/null
  scontrol requeue "${job}_2"
  echo "$(date +%T) task 2 put back while it computes: $(state "${job}_2")"
  kill -KILL "$(computing 3)"
  echo "$(date +%T) task 3: mrpo killed"
  until [ -z "$(squeue --noheader --job "$job")" ]; do sleep 1; done
  for task in 1 2 3 4; do echo "task $task: $(state "${job}_$task")"; done
  restarts=$(scontrol show job "${job}_2" | grep -oE 'Restarts=[0-9]+' | cut -d= -f2)
  (cd "$checkout" && python bench/many_machines.py compare "$project/whole" "$project/cache" \
    --name slurm --command "bench/slurm.sh PROJECT OUTPUT array" \
    --said "{\"slurm\": \"$(sinfo --version)\", \"tasks\": 4, \"restarts of task 2\": $restarts, \"seconds\": $(($(date +%s) - started))}")
}

train() {
  cd "$project"
  job=$(submit whole 1 train); until_done "$job"; echo "whole: $(state "$job")"
  job=$(submit preempted 1 train); preempt "$job" preempted
  job=$(submit killed 1 train DEAF=1); preempt "$job" killed
  job=$(submit whole2 2 train_two_nodes); until_done "$job"; echo "whole2: $(state "$job")"
  job=$(submit preempted2 2 train_two_nodes); preempt "$job" preempted2
  compare whole preempted
  compare whole killed
  compare whole2 preempted2
}

configure
trap stop EXIT
start
export PATH=$out/bin:$PATH
sinfo --version
"$trial"
