# shellcheck shell=bash
# How a script of this project runs in a Slurm job, and when its job goes back into the queue.
# Sourced by the .sbatch files beside it; both functions end the job's batch script.
#
#   resumable SCRIPT ARGUMENTS    a script that keeps a status.json in its --output_dir and continues what it finds there
#   repeatable SCRIPT ARGUMENTS   a script that starts from the beginning

most_restarts=200  # after which a job is not requeued from here; Slurm counts its own requeues, too
restarts=${SLURM_RESTART_COUNT:-0}

# torchrun kills its processes so many seconds after it was told to stop (older ones know 30 alone).
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120

# One torchrun a node, one process a GPU that Slurm granted, or one where it granted none. They meet on the first node,
# at a port that is this job's; the id keeps what is left of an earlier start of the job from joining this one.
read -r host < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
launch=(
  srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1
  ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} # which srun does not take over by itself since 22.05
  python -m torch.distributed.run --nnodes="$SLURM_JOB_NUM_NODES" --nproc_per_node="${SLURM_GPUS_ON_NODE:-1}"
  --rdzv_backend=c10d --rdzv_endpoint="$host:$((10000 + SLURM_JOB_ID % 20000))" --rdzv_id="$SLURM_JOB_ID.$restarts"
)

resumable() {
  local folder before saved_before state saved
  folder=$(output_dir "$@")
  if [ -z "$folder" ]; then
    say "error: no --output_dir, which is where a run continues after it was requeued; add --output_dir FOLDER"
    exit 2
  fi
  before=$(cat "$folder/status.json" 2>/dev/null || true)
  read -r _ saved_before < <(status "$folder")

  say "runs on $SLURM_JOB_NODELIST"
  trap 'ask_to_stop "$folder"' USR1 TERM
  "${launch[@]}" "$@" &
  run=$!
  wait "$run" || wait "$run" || true # a signal ends the first; how a run ended is in its status, torchrun says 1 or 0
  trap '' USR1 TERM                  # nothing is left to stop; a requeue ends this script by SIGTERM
  rm -f "$folder/stop"

  read -r state saved < <(status "$folder")
  if [ "$(cat "$folder/status.json" 2>/dev/null)" = "$before" ]; then
    state=none # what stands there was written before this start
  fi
  if [ "$state" = finished ]; then
    say "finished at step $saved"
    exit 0
  fi
  require_running
  if taken_away; then
    requeue "Slurm wants the nodes for another job; saved at step $saved"
  elif [ "$state" != preempted ]; then
    say "not requeued: the run did not stop because it was asked to (its state: $state); see above why it ended"
    exit 1
  elif [ "$saved" -le "$saved_before" ]; then
    say "not requeued: stopped at step $saved and began at $saved_before; without a step gained it would go on for ever"
    exit 1
  fi
  requeue "asked to stop, saved at step $saved"
}

repeatable() {
  say "runs on $SLURM_JOB_NODELIST"
  if "${launch[@]}" "$@"; then
    say "finished"
    exit 0
  fi
  require_running
  if taken_away; then
    requeue "Slurm wants the nodes for another job; this one will start from the beginning"
  fi
  say "not requeued: see above why it ended"
  exit 1
}

# On a full disk the log may take no line; that must decide nothing.
say() {
  echo "$(date '+%F %T') job $SLURM_JOB_ID, start $((restarts + 1)): $*" || true
}

# The value of --output_dir among the arguments.
output_dir() {
  local word previous=
  for word in "$@"; do
    case $previous in --output[-_]dir) printf %s "$word" ;; esac
    case $word in --output[-_]dir=*) printf %s "${word#*=}" ;; esac
    previous=$word
  done
}

# State and last saved step of the run in folder $1; 'none 0' where there is no status.
status() {
  python -c '
import json, sys
try:
    status = json.load(open(sys.argv[1] + "/status.json", encoding="utf-8"))
except (OSError, ValueError):
    status = {}
print(status.get("state", "none"), status.get("saved_step") or 0)' "$1"
}

# Until the run has ended: one that is only starting takes the file for an old request and removes it.
ask_to_stop() {
  say "asking the run to save and stop"
  while kill -0 "$run" 2>/dev/null; do
    touch "$1/stop" 2>/dev/null || true
    sleep 1
  done
}

# Leave a job that Slurm is ending, after scancel or where preemption leaves no grace time: requeue would bring back
# even one that was cancelled.
require_running() {
  local state
  job=$(scontrol show job "$SLURM_JOB_ID") || {
    say "error: cannot ask Slurm about this job, so it is not requeued; submit it again to go on"
    exit 1
  }
  state=$(sed -n 's/^ *JobState=\([A-Z_]*\).*/\1/p' <<<"$job")
  if [ "$state" != RUNNING ]; then
    say "not requeued from here: Slurm itself ends this job ($state)"
    exit 1
  fi
}

# Whether Slurm has begun to preempt this job. It would requeue one that stayed until the end of its grace time, and
# takes one that leaves before for completed.
taken_away() {
  grep -q '^ *PreemptEligibleTime=.* PreemptTime=[0-9]' <<<"$job"
}

requeue() {
  if [ "$restarts" -ge "$most_restarts" ]; then
    say "not requeued, though it could go on ($*): restarted $restarts times is enough; submit it again to go on"
    exit 1
  fi
  say "requeued: $*"
  scontrol requeue "$SLURM_JOB_ID" || {
    say "error: scontrol could not requeue this job; submit it again to go on"
    exit 1
  }
  exit 0
}
