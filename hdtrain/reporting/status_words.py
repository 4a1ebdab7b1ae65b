"""A queue's words in plain ones. No torch."""

import signal

_WAITING = {
    "Resources": "no nodes are free yet",
    "Priority": "other jobs go first",
    "BeginTime": "it was requeued a moment ago",
    "Cleaning": "its last attempt is being cleaned up",
    "JobArrayTaskLimit": "as many elements of the array run as may at once",
    "JobHeldUser": "it is held; `scontrol release` lets it go",
    "JobHeldAdmin": "an administrator holds it",
    "ReqNodeNotAvail": "nodes that it needs are down or reserved",
    "NodeDown": "a node that it needs is down",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition takes no jobs now",
    "PartitionTimeLimit": "it asks for more time than its partition gives, and will never begin",
    "PartitionNodeLimit": "it asks for more nodes than its partition gives, and will never begin",
    "PartitionConfig": "no node of its partition has the CPUs or GPUs that it asks for, and it will never begin",
    "BadConstraints": "no node is as its constraint wants, and it will never begin",
    "Licenses": "a licence that it needs is in use",
    "Reservation": "its reservation has not begun",
    "InvalidAccount": "its account is not valid",
    "InvalidQOS": "its QOS is not valid",
    "JobLaunchFailure": "it could not be started",
    "Dependency": "it waits for other jobs",
    "waits for its turn": "as many jobs run as the profile's max_jobs allows",
}
_LIMITS = ("Assoc", "QOS", "MaxCpuPer", "MaxGRESPer", "MaxNodePer", "MaxMemPer", "MaxJobsPer")
_ENDED = {
    "TIMEOUT": "its time limit came before it had saved",
    "OUT_OF_MEMORY": "out of memory",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node did not boot",
    "PREEMPTED": "a job of higher priority took its nodes",
    "DEADLINE": "its deadline has passed",
    "CONTROLLER_GONE": "the machine was restarted, or the controller of the local queue killed",
}


def why_waiting(reason: str, word: str) -> str:
    """Why a job waits: in words, and the queue's own in brackets."""
    if word in ("NODE_FAIL", "REQUEUED") and reason in ("", "None"):
        return "its node failed, and it begins again" if word == "NODE_FAIL" else "it was requeued a moment ago"
    key = next((part for part in (reason, reason.split(",")[0].split("(")[0].strip()) if part in _WAITING), "")
    if not reason:
        return ""
    limit = "a limit of its account or QOS holds it back" if reason.startswith(_LIMITS) else ""
    text = _WAITING.get(key) or limit
    own = reason if reason.replace("_", "").isalnum() else ""
    return f"{text}{f' ({own})' if own else ''}" if text else reason


def why_ended(word: str, code: str) -> str:
    """Why a job ended badly; nothing where the queue only knows that it did."""
    if word in _ENDED:
        return f"{_ENDED[word]}{f' ({word})' if word != 'CONTROLLER_GONE' else ''}"
    if word != "FAILED":
        return ""
    status, _, number = code.partition(":")  # SLURM's `2:0` and `0:9`, our `2` and `-9`
    number = status.removeprefix("-") if status.startswith("-") else number
    if number.isdecimal() and int(number) in set(signal.Signals):
        return f"killed by {signal.Signals(int(number)).name}"
    return f"exit code {status}" if status not in ("", "0") else ""
