"""What manifests tell of a solver sweep before it begins. No torch."""

from hdtrain.config.solver_sweep import SweepSolversConfig
from hdtrain.errors import ConfigError, DataError, ManifestError
from hdtrain.sampling.fit import ManifestOf, classes_of
from hdtrain.sampling.fit import check as check_sampling

MIN_FRECHET_IMAGES = 2


def check(config: SweepSolversConfig, manifest_of: ManifestOf) -> None:
    """Everything that can be known before the run.

    Raises:
        ManifestError: the models do not fit each other, or what is asked of them, or the classes of the real images.
        ConfigError: the steps of a solver do not fit the schedule, or there are too few images for an interval.
        DataError: there are too few real images.
    """
    problems = []
    for solver in config.by_name.values():
        try:
            check_sampling(config.sample_config(solver), manifest_of)
        except ConfigError as error:
            problems += [f"{solver.name}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError("solvers", problems)
    classes = classes_of(config.sample_config(config.reference), manifest_of)
    for path in config.real:
        theirs = manifest_of(path).classes
        if classes and theirs and theirs != classes:
            raise ManifestError(
                f"classes differ: real {path} has {', '.join(theirs)}; the images are made of {', '.join(classes)}"
            )
    real = sum(manifest_of(path).num_samples for path in config.real)
    if real < MIN_FRECHET_IMAGES:
        raise DataError(f"real: a Fréchet distance needs {MIN_FRECHET_IMAGES} images, there are {real}")
    left = images_without_a_group(config, len(classes or [""]))
    if left < MIN_FRECHET_IMAGES:
        raise ConfigError(
            "sweep-solvers",
            [
                f"per_class: a Fréchet distance needs {MIN_FRECHET_IMAGES} images and its interval as many without a "
                f"group of them, there are {left}; 100 and more give an interval that says something"
            ],
        )


def num_groups(config: SweepSolversConfig) -> int:
    """Into how many groups the images are divided: one holds an image of every class at least."""
    return min(config.groups, config.per_class)


def images_without_a_group(config: SweepSolversConfig, num_classes: int) -> int:
    """Images that are left when the largest group is left out."""
    return (config.per_class - -(-config.per_class // num_groups(config))) * num_classes
