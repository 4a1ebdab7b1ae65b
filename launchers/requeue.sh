# bash requeue.sh SUBMISSION CODE [OPTION…]: the end of a batch script. Did the job save itself before its end?
#
# Then it has left a mark, and goes on in another attempt, unless somebody cancelled it. Nodes in SUBMISSION/bad_nodes are
# excluded from it. OPTION: of sbatch, for the small job that excludes them. Exit code: CODE, or 75 where SLURM did not
# requeue the job. On the host: inside a container there are no commands of SLURM's.
submission=$1 code=$2
shift 2
mark=$submission/requeue/$SLURM_JOB_ID
[ -e "$mark" ] || exit "$code"
rm -f "$mark"
scontrol show job -o "$SLURM_JOB_ID" | grep -q "JobState=RUNNING" || exit 75
if [ -s "$submission/bad_nodes" ]; then
  # SLURM excludes nodes of waiting jobs alone: a small job does so, once this one is held in the queue
  nodes=$(sort -u "$submission/bad_nodes" | paste -sd, -)
  sbatch "$@" --job-name=exclude --time=5 --nodes=1 --ntasks=1 --output=/dev/null --exclude="$nodes" --wrap="
    for i in \$(seq 60); do scontrol update JobId=$SLURM_JOB_ID ExcNodeList=$nodes && break; sleep 2; done
    scontrol release $SLURM_JOB_ID" && scontrol requeuehold "$SLURM_JOB_ID" && sleep 600
fi
scontrol requeue "$SLURM_JOB_ID" && sleep 600
exit 75
