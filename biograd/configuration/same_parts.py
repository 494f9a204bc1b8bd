"""Whether what a call gives is what a run needs: a run file imports nothing by itself."""

from __future__ import annotations

from biograd import data
from biograd.configuration.own_parts import METRIC, OwnParts, typed
from biograd.configuration.resolved import Configuration
from biograd.errors import RecipeError
from biograd.user_code import is_named


def matching(
    configuration: Configuration, parts: OwnParts, path: object, call: str = "resume"
) -> list[str]:
    """Return in what the code that is given is another than the run's, a few words each.

    Args:
        call: the function of ``biograd`` that takes the parts.

    Raises:
        RecipeError: the run needs something that is not given, or what is given has no effect.
    """
    need_module(configuration, parts, path, call)
    need_data(configuration, parts, path, call)
    form, given = configuration.outputs, parts.outputs
    if given is not None and (not configuration.module or form not in (None, given)):
        raise RecipeError(f"{path}: outputs: the run's are {form}: leave yours out")
    for part in ("loss", "reset"):
        _need(part, configuration, parts, path, call)
    _need_metrics(configuration, parts, path, call)
    return [
        change
        for part, code in configuration.code.items()
        if part in parts.code
        for change in code.differs(parts.code[part].code)
    ]


def need_data(configuration: Configuration, parts: OwnParts, path: object, call: str) -> None:
    """Refuse to go on without the user's own data where no file can bring them back."""
    if configuration.data.source in data.ASKED and parts.data is None:
        raise RecipeError(
            f"{path}: the run learned from data of yours ({configuration.dataset}), which no file "
            f"brings back: give them to biograd.{call}(path, data=...), or name the function that "
            "returns them, --dataset package.module:function"
        )


def need_module(configuration: Configuration, parts: OwnParts, path: object, call: str) -> None:
    """Refuse to go on without the user's own module where the run trained one, and beside none."""
    if not configuration.module and parts.model is not None:
        raise RecipeError(
            f"{path}: the run trained {configuration.model}, which its recipe builds: leave the "
            "module (--model) out"
        )
    if not configuration.module:
        return
    known = configuration.code.get("model")
    made = "" if known is None else str(known)
    if parts.model is None:
        call = f"biograd.{call}(path, network=...)"
        how = f"--model {made}" if is_named(made) else call
        raise RecipeError(
            f"{path}: the run trained a module of yours ({made or configuration.model}), and a "
            f"file imports nothing by itself: give it, {how}"
        )
    if known is None and parts.repeats and call == "reproduce":
        raise RecipeError(
            f"{path}: the run began from a module that was given to a call, whose weights no class "
            "brings back: give a module of then to biograd.reproduce(path, network=...)"
        )


def _need(
    part: str, configuration: Configuration, parts: OwnParts, path: object, call: str
) -> None:
    """Refuse a loss or a reset that is another than the run's, and to go on without."""
    recipe = configuration.recipe
    named = {"loss": recipe.training.loss, "reset": recipe.module.reset}[part]
    known, given = configuration.code.get(part), getattr(parts, part)
    if given is not None and part == "reset" and not configuration.module:
        raise RecipeError(f"{path}: reset: a network of biograd keeps no state: leave it out")
    if part == "reset" and named and given is None and not named.startswith("reset"):
        raise RecipeError(
            f"{path}: the run calls the method {named!r} of your module before every pass, and a "
            f"file calls nothing by itself: give it, --reset {named}"
        )
    if known is not None and given is None:
        raise RecipeError(
            f"{path}: the run has a {part} of yours ({known}), and a file imports nothing by "
            f"itself: give it, {f'--{part} {known}, or ' * is_named(str(known))}"
            f"biograd.{call}(path, {part}=...)"
        )
    if known is None and given is not None and named and given != named:
        raise RecipeError(f"{path}: the run's {part} is {named!r}: leave yours out")
    if part == "loss" and known is None and given is not None:
        raise RecipeError(f"{path}: the run has the loss of its task: leave yours out")


def _need_metrics(configuration: Configuration, parts: OwnParts, path: object, call: str) -> None:
    """Refuse metrics that the run does not have, and to go on without those of the user's.

    A repetition may do without: it then names their columns as differences.
    """
    known = [part.removeprefix(METRIC) for part in configuration.code if part.startswith(METRIC)]
    for name in known:
        if call == "resume" and name not in parts.metrics:
            code = configuration.code[f"{METRIC}{name}"]
            way = f"{typed(f'{METRIC}{name}', code)}, or " * is_named(str(code))
            raise RecipeError(
                f"{path}: the run has the metric {name} of yours ({code}), and a file imports "
                f"nothing by itself: give it, {way}biograd.resume(path, metrics=...)"
            )
    for name in parts.metrics:
        if name not in (*known, *configuration.recipe.training.metrics):
            raise RecipeError(f"{path}: the run has no metric {name}: leave yours out")
