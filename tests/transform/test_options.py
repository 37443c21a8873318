"""What stages are by default, how they are spelt, which options they refuse, and that their errors say who they are."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from problem import F64, plain

import gradfunc as gf
from gradfunc._transform._rules._momentum import Averaged

INF, NAN = math.inf, math.nan


def halving(step):
    return 2.0**-step


def below_five(g):
    return g.losses < 5


def numbers(g):
    return g.losses


@dataclass(frozen=True)
class Option:
    """What an option is by default, what else it may be, and what is refused: values out of range, and other types."""

    default: Any
    others: tuple[Any, ...]
    out_of_range: tuple[Any, ...] = ()
    no_such_type: tuple[Any, ...] = ("1", True, halving)


def number(default, *others, out):
    return Option(default, others, out)


def scheduled(default, *others, out):
    """A number, or a function from the count of updates to one."""
    return Option(default, (*others, halving), out, ("1", True))


def choice(default, *others):
    return Option(default, others, ("drop", "1", None), ())


FLAGS = {default: Option(default, (not default,), (), (1, "yes", None)) for default in (False, True)}
ON, OFF = FLAGS[True], FLAGS[False]
BELOW_0 = (-1e-9, INF, NAN)
rate = partial(scheduled, out=BELOW_0)
decay = partial(scheduled, out=BELOW_0)
betas = partial(
    Option,
    out_of_range=((1.0, 0.5), (0.5, 1.0), (-1e-9, 0.5), (0.5, -1e-9), (NAN, 0.5)),
    no_such_type=(0.9, (0.9,), (0.9, 0.9, 0.9), ("0.9", 0.9), (0.9, halving), (halving, 0.9)),
)
eps = partial(number, out=BELOW_0)
norm = partial(scheduled, out=(0.0, -1.0, NAN))
policy = choice("raise", "skip", "zero", "keep")
share = partial(number, out=(-1e-9, 1.0, NAN))

REQUIRED = object()
# Of each function, its arguments in order; those without a default have REQUIRED, and stand first.
OPTIONS: dict[str, dict[str, Option]] = {
    "sgd": {
        "lr": rate(1e-3, 0.0, 0.5),
        "momentum": eps(0.0, 0.5, 1.5),
        "dampening": number(0.0, -0.5, 0.25, out=(INF, NAN)),
        "weight_decay": decay(0.0, 0.5),
        "nesterov": OFF,
        "maximize": OFF,
    },
    "adam": {
        "lr": rate(1e-3, 0.0, 0.5),
        "betas": betas((0.9, 0.999), ((0.0, 0.0), (0.5, 0.25))),
        "eps": eps(1e-8, 0.0, 0.5),
        "weight_decay": decay(0.0, 0.5),
        "amsgrad": OFF,
    },
    "adamw": {
        "lr": rate(1e-3, 0.0, 0.5),
        "betas": betas((0.9, 0.999), ((0.0, 0.0), (0.5, 0.25))),
        "eps": eps(1e-8, 0.0, 0.5),
        "weight_decay": decay(1e-2, 0.0, 0.5),
        "amsgrad": OFF,
    },
    "lion": {
        "lr": rate(1e-4, 0.0, 0.5),
        "betas": betas((0.9, 0.99), ((0.0, 0.0), (0.5, 0.25))),
        "weight_decay": decay(0.0, 0.5),
    },
    "muon": {
        "lr": rate(1e-3, 0.0, 0.5),
        "weight_decay": decay(0.1, 0.0, 0.5),
        "momentum": share(0.95, 0.0, 0.5),
        "nesterov": ON,
        "ns_steps": Option(5, (1, 7), (0, -1), (1.5, "5", True)),
        "precision": choice("bfloat16", "float32", "float64"),
    },
    "adam_per_sample": {
        "lr": rate(1e-3, 0.0, 0.5),
        "betas": betas((0.9, 0.999), ((0.0, 0.0), (0.5, 0.25))),
        "eps": eps(1e-8, 0.0, 0.5),
        "second_moment": choice("squares", "variance"),
    },
    "noise_scaled_step": {"lr": rate(REQUIRED, 0.0, 0.5), "beta": share(0.9, 0.0, 0.5), "nonfinite": policy},
    "descend": {"lr": rate(REQUIRED, 0.0, 0.5)},
    "momentum": {
        "momentum": eps(REQUIRED, 0.0, 0.5, 1.5),
        "dampening": number(0.0, -0.5, 0.25, out=(INF, NAN)),
        "nesterov": OFF,
    },
    "scale_by_adam": {
        "betas": betas((0.9, 0.999), ((0.0, 0.0), (0.5, 0.25))),
        "eps": eps(1e-8, 0.0, 0.5),
        "amsgrad": OFF,
    },
    "scale_by_lion": {"betas": betas((0.9, 0.99), ((0.0, 0.0), (0.5, 0.25)))},
    "orthogonalize": {
        "ns_steps": Option(5, (1, 7), (0, -1), (1.5, "5", True)),
        "precision": choice("bfloat16", "float32", "float64"),
    },
    "adaptive_clip_per_sample": {
        "initial": number(0.1, 0.5, 1e9, out=(0.0, -1.0, INF, NAN)),
        "quantile": number(0.5, 0.0, 1.0, out=(-1e-9, 1 + 1e-9, NAN)),
        "learning_rate": eps(0.2, 0.0, 0.5),
        "count_noise_std": eps(0.0, 0.5),
        "batch_size": Option(None, (0.5, 8.0), (0.0, -1.0, INF, NAN), ("8", True, halving)),
        "unit": OFF,
        "seed": Option(0, (1, -7), (), (0.5, "0", True)),
        "nonfinite": policy,
    },
    "clip_per_sample": {
        "max_norm": norm(REQUIRED, 0.5, INF),
        "groups": Option(
            None,
            ("parameter", {}, {"a": 0.5}, {"a": 0.5, "b": INF}, {"a": halving}),
            ("a", {"a": 0.0}, {"(": 1.0}),
            ({"a": "1"},),
        ),
        "per_unit_weight": OFF,
        "eps": eps(0.0, 0.5),
        "nonfinite": policy,
    },
    "clip_value_per_sample": {"limit": norm(REQUIRED, 0.5, INF), "nonfinite": policy},
    "sign_per_sample": {"nonfinite": policy},
    "normalize_per_sample": {
        "max_norm": scheduled(1.0, 0.5, out=(0.0, -1.0, INF, NAN)),
        "stability": eps(0.01, 0.0, 0.5),
        "per_unit_weight": OFF,
        "nonfinite": policy,
    },
    "nonfinite_per_sample": {"policy": choice(REQUIRED, "raise", "skip", "zero", "keep")},
    "normalize_weights": {},
    "top_k_loss": {"k": number(REQUIRED, 1, 7, 0.5, 1e-9, out=(0, -1, 1.5, INF, NAN))},
    "focal_weights": {"gamma": eps(2.0, 0.0, 0.5)},
    "mask_per_sample": {
        "keep": Option(REQUIRED, (below_five,), (), (3, None)),
        "per_sample_independent": OFF,
    },
    "reweight_per_sample": {
        "numbers": Option(REQUIRED, (numbers,), (), (3, None)),
        "weights": ON,
        "per_sample_independent": OFF,
    },
    "scale": {"factor": scheduled(REQUIRED, 0.0, -0.5, 3.0, out=(INF, -INF, NAN))},
    "identity": {},
}
NAMES = {**vars(gf), "inf": INF, "halving": halving, "below_five": below_five, "numbers": numbers}
# Options that need others.
BESIDES = {("sgd", "nesterov"): {"momentum": 0.5}, ("adaptive_clip_per_sample", "seed"): {}}
# Stages whose spelling says all, or not by name.
SPELT = {
    "scale_by_adam": "scale_by_adam(betas=(0.9, 0.999), eps=1e-08)",
    "scale_by_lion": "scale_by_lion((0.9, 0.99))",
    "orthogonalize": "orthogonalize(5, precision='bfloat16')",
    "focal_weights": "focal_weights(2.0)",
    "normalize_per_sample": "normalize_per_sample(1.0)",
    "clip_per_sample": "clip_per_sample(0.5)",
}


def first(name):
    """What stands for the arguments without a default."""
    given = {k: option.others[0] for k, option in OPTIONS[name].items() if option.default is REQUIRED}
    return {k: 0.5 if (name, k) == ("momentum", "momentum") else value for k, value in given.items()}


def made(name, **changed):
    return getattr(gf, name)(*{**first(name), **{k: v for k, v in changed.items() if k in first(name)}}.values(), **{
        k: v for k, v in changed.items() if k not in first(name)
    })  # fmt: skip


def known(stage):
    """All that a stage is made of; functions made of functions by their parts."""
    numbers = getattr(stage, "numbers", None)
    if isinstance(numbers, partial):
        kept = {k: v for k, v in vars(stage).items() if k != "numbers"}
        return {**kept, "of": (numbers.func, numbers.args, numbers.keywords)}
    return stage


EACH = [(name, option) for name, options in OPTIONS.items() for option in options]


def check_defaults(name):
    """As the table has them, which is as the documentation has them; given at their default they change nothing."""
    defaults = {k: option.default for k, option in OPTIONS[name].items() if option.default is not REQUIRED}
    asked = inspect.signature(getattr(gf, name)).parameters
    assert list(asked) == list(OPTIONS[name])
    assert {k: p.default for k, p in asked.items() if p.default is not p.empty} == defaults
    stage = made(name)
    assert known(made(name, **defaults)) == known(stage)
    rate = [repr(defaults["lr"])] if "lr" in defaults else []
    plain = f"{name}({', '.join([*(NAMES_OF.get(v, repr(v)) for v in first(name).values()), *rate])})"
    assert repr(stage) == repr(made(name, **defaults)) == SPELT.get(name, plain)


NAMES_OF = {below_five: "below_five", numbers: "numbers"}


@pytest.mark.parametrize("name", OPTIONS)
def test_defaults(name):
    check_defaults(name)


@pytest.mark.parametrize(("name", "option"), EACH)
def test_a_stage_is_spelt_as_it_was_called(name, option):
    """Its repr, called again, is the same stage; with another option it is another one, and says so."""
    stages = [made(name, **BESIDES.get((name, option), {}))]
    for value in OPTIONS[name][option].others:
        stage = made(name, **{option: value, **BESIDES.get((name, option), {})})
        again = eval(repr(stage), dict(NAMES))
        assert known(again) == known(stage)
        assert repr(again) == repr(stage)
        stages.append(stage)
    if OPTIONS[name][option].default is REQUIRED:
        stages.pop(0)
    assert len({repr(stage) for stage in stages}) == len(stages)
    assert all(known(a) != known(b) for k, a in enumerate(stages) for b in stages[:k])


@pytest.mark.parametrize(("name", "option"), EACH)
def test_what_an_option_may_not_be(name, option):
    """Refused by its own name where the stage is made, before anything is done."""
    asked = OPTIONS[name][option]
    for kind, values in ((ValueError, asked.out_of_range), (TypeError, asked.no_such_type)):
        for value in values:
            with pytest.raises(kind, match=rf"^gf\.{name}\(.*got (\w+: )?{option}"):
                made(name, **{option: value})


@pytest.mark.parametrize(("name", "option"), [(n, k) for n, k in EACH if OPTIONS[n][k].no_such_type[:1] == ("1",)])
def test_what_else_a_number_may_be_is_said(name, option):
    expected = "a number, or a function from the step to one" if halving in OPTIONS[name][option].others else "a number"
    with pytest.raises(TypeError, match=rf"got {option}='1'; expected {expected}\.$"):
        made(name, **{option: "1"})


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "identity"])
def test_a_stage_goes_by_the_name_of_its_function(name):
    stage = made(name)
    assert stage.name == name
    assert gf.chain(stage).keys == (name,)


def test_names_of_parts():
    """They are keys of states, so that a rename would lose what was stored."""
    assert made("muon").chain.keys == ("averaged", "orthogonalize", "add_decayed_weights", "descend")
    assert gf.lion(weight_decay=0.5).chain.keys == ("scale_by_lion", "add_decayed_weights", "descend")
    assert gf.adam(weight_decay=0.5).chain.keys == ("add_decayed_weights", "scale_by_adam", "descend")
    assert made("adamw").chain.keys == ("scale_by_adam", "add_decayed_weights", "descend")
    every = gf.sgd(momentum=0.5, weight_decay=0.5, maximize=True)
    assert every.chain.keys == ("scale", "add_decayed_weights", "momentum", "descend")
    assert gf.identity().name == "identity"


def test_spelling_of_what_holds_stages():
    part = gf.partition({"x": gf.scale(halving), "y": gf.clip_by_value(1.0)}, {"a": "x", ".*": "y"})
    whole = gf.masked(gf.scale(0.5) >> gf.scale(2.0), ["a"]) >> part
    assert eval(repr(whole), dict(NAMES)) == whole
    assert repr(part) == "partition({'x': scale(halving), 'y': clip_by_value(1.0)}, {'a': 'x', '.*': 'y'})"
    mine = gf.masked(Mine(), "a") >> gf.partition({"x": Mine()}, labelled) >> gf.stateless_transform(below_five)
    assert (
        repr(mine) == "masked(Mine, select='a') >> partition({'x': Mine}, labelled) >> stateless_transform(below_five)"
    )
    assert mine.name == "masked(Mine) >> partition >> stateless_transform"
    assert repr(Averaged(0.5, True)) == "averaged(0.5, nesterov=True)"
    assert repr(gf.momentum(0.5, dampening=0.25)) == "momentum(0.5, dampening=0.25)"
    rule = gf.from_torch_optim(torch.optim.SGD, lr=halving, momentum=0.5)
    assert repr(rule) == "from_torch_optim(SGD, lr=halving, momentum=0.5)"
    assert repr(gf.from_torch_optim(torch.optim.SGD, lr=0.5)) == "from_torch_optim(SGD, lr=0.5)"


class Mine:
    def init(self, params):
        return ()

    def update(self, grads, state, params=None, /):
        return grads, state


def labelled(name, value):
    return "x"


NUMBERS = [0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor(0.5).half()]


@pytest.mark.parametrize("given", NUMBERS, ids=lambda given: f"{type(given).__name__} {getattr(given, 'dtype', '')}")
def test_a_schedule_gives_any_kind_of_number(given):
    g = {"a": torch.ones(2, dtype=F64)}
    stage = gf.scale(lambda step: given)
    assert stage.update(g, stage.init(g))[0]["a"].tolist() == [0.5, 0.5]
    whole = gf.scale(lambda step: 3)
    assert whole.update(g, whole.init(g))[0]["a"].tolist() == [3, 3]


@pytest.mark.parametrize("given", [None, np.ones(1), torch.ones(1), "0.5"], ids=lambda given: type(given).__name__)
def test_a_schedule_gives_nothing_else(given):
    g = {"a": torch.ones(2, dtype=F64)}
    stage = gf.scale(lambda step: given)
    says(TypeError, "scale(", partial(stage.update, g, stage.init(g)), "from factor(step=0); expected a number.")


# --- errors say who they are ----------------------------------------------------------------------------


def grads():
    return {"a": torch.ones(1, 2, dtype=F64), "b": torch.ones(2, 2, dtype=F64)}


def speaker(stage):
    """Who looks at what comes: the first part of a rule that is a chain and nothing else."""
    return stage.parts[0] if type(stage).__name__ == "Named" else stage


SPEAK = {
    **{name: made(name) for name in OPTIONS if name != "identity"},
    "with momentum": gf.sgd(0.5, momentum=0.5),
    "maximized": gf.sgd(0.5, maximize=True),
    "averaged": Averaged(0.5, False),
    "from_torch_optim": gf.from_torch_optim(torch.optim.SGD, lr=0.5, momentum=0.5),
    "masked": gf.masked(gf.scale(0.5), "a"),
    "partition": gf.partition({"all": gf.scale(0.5)}, {".*": "all"}),
}
ROWS = [name for name, stage in SPEAK.items() if stage.takes is gf.PerSampleGrads]
BATCH = [name for name in SPEAK if name not in ROWS]


def says(kind, who, call, *texts):
    """The error that a call raises repeats it, and what came."""
    with pytest.raises(kind) as error:
        call()
    assert str(error.value).startswith(who), f"{error.value} is not said by {who}"
    for text in texts:
        assert text in str(error.value)


@pytest.mark.parametrize("name", ROWS)
def test_who_takes_rows_says_so(name):
    stage = SPEAK[name]
    for wrong, what in ((grads(), "a dict"), ([1], "a list"), (None, "None")):
        call = partial(stage.update, wrong, stage.init(grads()), grads())
        says(TypeError, f"{stage!r}.update(g, state): got {what}; expected per-sample gradients.", call)


@pytest.mark.parametrize("name", BATCH)
def test_who_takes_gradients_says_so(name):
    stage = SPEAK[name]
    state, who = stage.init(grads()), repr(speaker(stage))
    g, _ = plain(torch.ones(2, 3, dtype=F64))
    says(TypeError, f"{who}.update(grads, state): got a list; expected", partial(stage.update, [1], state, grads()))
    if name in ("masked", "partition"):  # which rows may pass
        return
    reduce = "expected gradients {name: tensor}. Reduce per-sample gradients first: gf.mean()."
    says(TypeError, f"{who}.update(grads, state): got a PerSampleGrads; {reduce}", partial(stage.update, g, state))
    says(TypeError, f"{who}.update(grads, state): got a dict; expected", partial(stage.update, {"a": 1}, state))


REMEMBER = ["adam", "adamw", "lion", "scale_by_adam", "scale_by_lion", "momentum", "muon", "with momentum", "averaged"]
REMEMBER += ["from_torch_optim"]


@pytest.mark.parametrize("name", [*REMEMBER, "adam_per_sample"])
def test_gradients_of_what_nobody_knows(name):
    stage = SPEAK[name]
    other, _ = plain(torch.ones(3, 3, dtype=F64))
    given = other if name == "adam_per_sample" else {"b": torch.ones(2, 2), "other": torch.ones(2, 2)}
    missing, known = (["a", "b"], ["x"]) if name == "adam_per_sample" else (["other"], ["a", "b"])
    state = stage.init({k: torch.ones(2, 2) for k in known})
    who = f"{getattr(stage, 'moments', speaker(stage))!r}.update(grads, state"  # of Adam, who remembers
    params = {k: torch.ones(2, 2) for k in ("a", "b", "other")} if name == "from_torch_optim" else None
    says(ValueError, who, partial(stage.update, given, state, params), f"gradients of {missing}", f"some of {known}")


NEED_PARAMS = {
    "from_torch_optim": SPEAK["from_torch_optim"],
    "adamw": gf.adamw(0.5, weight_decay=0.5),
}


@pytest.mark.parametrize("name", NEED_PARAMS)
def test_who_needs_parameters_says_so(name):
    stage = NEED_PARAMS[name]
    state, who = stage.init(grads()), f"{stage!r}.update(grads, state"
    says(ValueError, who, partial(stage.update, grads(), state), "got no params; expected the parameters")
    says(ValueError, who, partial(stage.update, grads(), state, {"a": grads()["a"]}), "gradients of ['b']")


SCHEDULES = [(name, k) for name, options in OPTIONS.items() for k, o in options.items() if halving in o.others]
SCHEDULES = [(name, k) for name, k in SCHEDULES if k != "weight_decay"]  # which the stage that decays says
SCHEDULES += [("from_torch_optim", "lr"), ("clip_per_sample", "groups")]


def scheduled_stage(name, option, schedule):
    if name == "from_torch_optim":
        return gf.from_torch_optim(torch.optim.SGD, lr=schedule)
    if option == "groups":
        return gf.clip_per_sample(1.0, groups={"a": schedule})
    return made(name, **{option: schedule})


@pytest.mark.parametrize(("name", "option"), SCHEDULES)
def test_a_schedule_out_of_range_says_whose_and_when(name, option):
    """Good twice, then -1, NaN or no number: the error names stage, option and count."""
    g, params = plain(torch.eye(3, dtype=F64))
    given = {k: torch.ones(2, 2) for k in params} if name in BATCH else g
    params = {k: torch.ones(2, 2) for k in params} if name in BATCH else params

    def bad(step, value):
        return 0.5 if step < 2 else value

    for value, kind in ((NAN, ValueError), (INF if name == "scale" else -1.0, ValueError), ("1", TypeError)):
        stage = scheduled_stage(name, option, partial(bad, value=value))
        state = stage.init(params)
        for _ in range(2):
            _, state = stage.update(given, state, params)
        last = next((p for p in getattr(stage, "parts", ()) if type(p).__name__ == "Descend"), stage)
        called = "max_norm" if option == "groups" else option
        got = "a str" if kind is TypeError else f"{float(value)!r}"
        says(kind, repr(last), partial(stage.update, given, state, params), f"got {got} from {called}(step=2)")
