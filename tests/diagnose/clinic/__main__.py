"""Record the clinic's figures: `PYTHONPATH=.:tests/diagnose python -m clinic --seeds-of COMMIT --out clinic.json`.

Seeds are read off the hash of the commit that froze the probes, so that nobody could choose them.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import hashlib
import json
import multiprocessing
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

import clinic
import gradfunc as gf

STEPS = 30


def seeds_of(commit, count):
    """Numbers from 100 on, which no test has."""
    return [100 + int(hashlib.sha256(f"{commit} {k}".encode()).hexdigest(), 16) % 10**6 for k in range(count)]


def learns(patient):
    """Whether the loss is lower after some of its own steps; None where it has no optimizer."""
    model, criterion, optimizer = (patient[key] for key in ("model", "criterion", "optimizer"))
    if optimizer is None:
        return None
    batches = patient["data"] if isinstance(patient["data"], list) else [patient["data"]]
    step = patient["step"] or clinic.draw.plain(criterion)
    if isinstance(optimizer, torch.optim.LBFGS):
        return None  # `plain` has no closure for it

    def loss():
        twin = copy.deepcopy(model)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            return sum(float(criterion(twin(*batch[:-1]), batch[-1]).mean()) for batch in batches)

    before = loss()
    for k in range(STEPS):
        step(model, optimizer, batches[k % len(batches)])
    return loss() < before


def sick(make, seed):
    """Of one case: what comes first, whether its cure is quiet, and whether the cured one learns."""
    cause = clinic.SICK[make]
    found = gf.diagnose.doctor(**clinic.sick(make, seed))
    cured = gf.diagnose.doctor(**clinic.sick(make, seed, cured=True))
    first = next(iter(found.causes), None)
    quiet = cured.ok and cause not in cured.causes
    well = learns(clinic.sick(make, seed, cured=True))
    return {"case": make.__name__, "seed": seed, "cause": cause, "first": first, "quiet": quiet, "learns": well}


def healthy(make, seed):
    """Of one case: severe findings and warnings."""
    findings = gf.diagnose.doctor(**clinic.healthy(make, seed)).findings
    said = {word: [f.cause for f in findings if f.severity == word] for word in ("severe", "warning")}
    return {"case": make.__name__, "seed": seed, **said}


def of_seed(seed):
    """All cases."""
    torch.set_num_threads(1)
    return [sick(make, seed) for make in clinic.SICK], [healthy(make, seed) for make in clinic.HEALTHY]


def figures(seeds):
    """All cases at all seeds."""
    with ProcessPoolExecutor(len(seeds), mp_context=multiprocessing.get_context("fork")) as pool:
        both = list(pool.map(of_seed, seeds))
    patients, well = [one for seed in both for one in seed[0]], [one for seed in both for one in seed[1]]
    right = sum(one["first"] == one["cause"] for one in patients)
    asked = [one for one in patients if one["learns"] is not None]
    return {
        "seeds": seeds,
        "sick": len(patients),
        "true_cause_first": right,
        "share": round(right / len(patients), 4),
        "quiet_after_the_cure": sum(one["quiet"] for one in patients),
        "cured_and_trained": len(asked),
        "of_these_learn": sum(one["learns"] for one in asked),
        "healthy": len(well),
        "healthy_with_severe": sum(bool(one["severe"]) for one in well),
        "healthy_with_warnings": sum(bool(one["warning"]) for one in well),
        "missed": [
            one for one in patients if one["first"] != one["cause"] or not one["quiet"] or one["learns"] is False
        ],
        "alarms": [one for one in well if one["severe"] or one["warning"]],
    }


def main():
    parser = argparse.ArgumentParser(prog="python -m clinic", description=__doc__)
    parser.add_argument(
        "--seeds-of", metavar="COMMIT", help="that froze the probes; without, seeds 0, 1, ... of the tests"
    )
    parser.add_argument("--count", type=int, default=3, help="of seeds")
    parser.add_argument("--name", default="before the freeze", help="of the figure")
    parser.add_argument("--out", type=Path, required=True, help="added to what is there")
    options = parser.parse_args()
    seeds = seeds_of(options.seeds_of, options.count) if options.seeds_of else list(range(options.count))
    made = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "gradfunc": gf.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "frozen_at": options.seeds_of,
        "cases": {"sick": len(clinic.SICK), "healthy": len(clinic.HEALTHY)},
    }
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    kept[options.name] = {**made, **figures(seeds)}
    options.out.write_text(json.dumps(kept, indent=1) + "\n")
    told = kept[options.name]
    sys.stdout.write(str({key: value for key, value in told.items() if not isinstance(value, (list, dict))}) + "\n")


if __name__ == "__main__":
    main()
