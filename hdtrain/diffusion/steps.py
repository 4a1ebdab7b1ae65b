"""How many steps a solver can take of a schedule of so many timesteps. No torch."""

from hdtrain.errors import ConfigError


def check_steps(kind: str, steps: int, total: int, trailing: bool, key: str = "solver.steps") -> None:
    """Refuse what the solver `kind` cannot do.

    Args:
        kind: as in `SolverConfig`.
        steps: that it is to take.
        total: the denoiser's training timesteps.
        trailing: timesteps end at T − 1, as under a zero terminal SNR.
        key: of the config that says how many, for the message.

    Raises:
        ConfigError: for DDIM and DDPM, `steps` does not divide `total` into equal parts (of at least two where DDIM's
            first timestep is 1); for the others, there are not so many timesteps.
    """
    if kind in ("ddim", "ddpm"):
        every = kind == "ddpm" or trailing
        fitting = [s for s in range(1, total + every) if total % s == 0]
        if steps not in fitting:
            nearest = sorted(sorted(fitting, key=lambda s: abs(s - steps))[:4])
            raise ConfigError(
                key.partition(".")[0], [f"{key}: must divide {total} timesteps evenly, got {steps}; near it: {nearest}"]
            )
    elif steps >= total:
        raise ConfigError(
            key.partition(".")[0], [f"{key}: must be less than the {total} timesteps, got {steps}; 20 to 50 do"]
        )
