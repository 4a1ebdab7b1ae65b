#!/bin/bash

# Parameters
#SBATCH --account=histo
#SBATCH --cpus-per-task=12
#SBATCH --dependency=afterok:101:102
#SBATCH --error=/runs/.launch/001/jobs/ldm/%j_0_log.err
#SBATCH --gpus-per-node=8
#SBATCH --job-name=demo/ldm
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=921600MB
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/runs/.launch/001/jobs/ldm/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --time=1440

# setup
# the job's processes save when they are told to end; this script stays to see how
trap : TERM
# they hold signals back until they can hear them (coreutils 8.31)
hold=$(env --block-signal=TERM,USR1,INT true 2>/dev/null && echo env --block-signal=TERM,USR1,INT)
export PYTHONPATH=/runs/.launch/001/code${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1  # else the folder that the job was submitted from would come first
export HDTRAIN_COMMIT=0123abc
# until when this attempt may run, in unix seconds: it saves in time
end=$(scontrol show job -o "$SLURM_JOB_ID" | sed -n "s/.* EndTime=\([^ ]*\).*/\1/p")
export HDTRAIN_JOB_END_TIME=$([ -z "$end" ] || date -d "$end" +%s 2>/dev/null)
# since 22.05 srun doesn't take this over from sbatch, and every rank would get one core
export SRUN_CPUS_PER_TASK=12

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/.launch/001/jobs/ldm/%j_%t_log.out --error /runs/.launch/001/jobs/ldm/%j_%t_log.err --kill-on-bad-exit=1 $hold /env/bin/python -u -m launchers.begin /runs/.launch/001/jobs/ldm


# teardown
bash /runs/.launch/001/code/launchers/requeue.sh /runs/.launch/001 $? --partition=gpu --account=histo
