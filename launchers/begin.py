"""`python -m launchers.begin FOLDER`: a task of a SLURM job, in place of submitit's own entry point.

submitit and what it unpickles take seconds to import on a busy file server, and a signal in that time would end the
task unheard: here they are held back before that.
"""

from launchers.signals import hold

if __name__ == "__main__":
    hold()
    from submitit.core.submission import submitit_main

    submitit_main()
