"""Updates with something wrong, and what healthy ones share with them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import gradfunc as gf

from .draw import case, classifying, plain


def missing_zero_grad(d, cured):
    def change(criterion):
        def step(model, optimizer, batch):
            if cured:
                optimizer.zero_grad()
            criterion(model(batch[0]), batch[1]).backward()
            optimizer.step()

        return step

    return classifying(d, change)


def parts(cured, zero_inside=False, divide=True, k=4):
    def change(criterion):
        def step(model, optimizer, batch):
            optimizer.zero_grad()
            for x, y in zip(batch[0].chunk(k), batch[1].chunk(k), strict=True):
                if zero_inside and not cured:
                    optimizer.zero_grad()
                (criterion(model(x), y) / (k if divide or cured else 1)).backward()
            optimizer.step()

        return step

    return change


def missing_division(d, cured):
    return classifying(d, parts(cured, divide=False, k=2 if d.int(0, 2) else 4))


def only_last_part(d, cured):
    return classifying(d, parts(cured, zero_inside=True, k=2 if d.int(0, 2) else 4))


def gradient_zeroed(d, cured):
    def change(criterion):
        def step(model, optimizer, batch):
            optimizer.zero_grad()
            criterion(model(batch[0]), batch[1]).backward()
            if not cured:
                optimizer.zero_grad()
            optimizer.step()

        return step

    return classifying(d, change)


def no_step(d, cured):
    def change(criterion):
        def step(model, optimizer, batch):
            optimizer.zero_grad()
            criterion(model(batch[0]), batch[1]).backward()
            if cured:
                optimizer.step()

        return step

    return classifying(d, change)


def scaled(cured, clip=None):
    def change(criterion):
        def step(model, optimizer, batch):
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
            optimizer.zero_grad()
            scaler.scale(criterion(model(batch[0]), batch[1])).backward()
            if clip is None:
                scaler.step(optimizer) if cured else optimizer.step()
                return
            if cured:
                scaler.unscale_(optimizer)
            clip_grad_norm_(model.parameters(), clip)
            scaler.step(optimizer)

        return step

    return change


def gradient_scale_left(d, cured):
    return classifying(d, scaled(cured))


def clipped_before_unscaling(d, cured):
    return classifying(d, scaled(cured, clip=1.0))


def uphill_step(d, cured):
    def change(criterion):
        return plain(criterion if cured else lambda output, target: -criterion(output, target))

    return classifying(d, change)


def step_differs(d, cured):
    def change(criterion):
        other = criterion if cured else lambda output, y: F.cross_entropy(output.tanh(), y)
        return plain(other)

    return classifying(d, change)


def moved_otherwise(d, cured):
    def change(criterion):
        def step(model, optimizer, batch):
            plain(criterion)(model, optimizer, batch)
            if not cured:
                for p in model.parameters():
                    p.data.mul_(0.999)

        return step

    return classifying(d, change)


def clips_by_value(d, cured):
    return classifying(d, clipping(lambda own: None if cured else clip_grad_value_(own, 1e-2)))


def clipping(clip):
    def change(criterion):
        def step(model, optimizer, batch):
            optimizer.zero_grad()
            criterion(model(batch[0]), batch[1]).backward()
            clip(model.parameters())
            optimizer.step()

        return step

    return change


def clips_always(d, cured):
    return classifying(d, clipping(lambda own: clip_grad_norm_(own, 10.0 if cured else 2e-3)))


def clips_never(d, cured):
    return classifying(d, clipping(lambda own: clip_grad_norm_(own, 1.0 if cured else 1e4)))


def never_by_value(d, cured):
    return classifying(d, clipping(lambda own: clip_grad_value_(own, 1.0 if cured else 1e4)))


def said(d, bound):
    """The reports of a chain with a clip at this share of the median gradient, over 40 batches of eight."""
    net, y, generator = d.net(d.classes), d.labels(), torch.Generator().manual_seed(d.n)
    model, batches = gf.stateless(net), [torch.randperm(d.n, generator=generator)[:8] for _ in range(40)]

    def reports(clip):
        f = gf.per_sample_grads(lambda p, x, y: gf.losses.cross_entropy(model.sample(p, x), y))
        chain = gf.mean() >> gf.clip_by_global_norm(clip) >> gf.sgd(0.05)
        run, params, state, told = gf.make_step(f, chain), model.params, chain.init(model.params), []
        for rows in batches:
            params, state, report = run(params, state, d.x[rows], y[rows])
            told.append(report)
        return told

    norms = [float(report["clip_by_global_norm"]["norm"]) for report in reports(1e9)]
    clip = bound * sorted(norms)[len(norms) // 2]
    return case(net, nn.CrossEntropyLoss(), (d.x, y), reports=reports(clip))


def chain_never_clips(d, cured):
    return said(d, 1.0 if cured else 100.0)


def chain_always_clips(d, cured):
    return said(d, 1.0 if cured else 1e-3)


def scaled_by_hand(d, cured):
    """One backward pass of a multiple of the loss."""
    return classifying(d, lambda criterion: plain(lambda output, y: (1 if cured else 128) * criterion(output, y)))


def clips_after_the_step(d, cured):
    def change(criterion):
        def step(model, optimizer, batch):
            optimizer.zero_grad()
            criterion(model(batch[0]), batch[1]).backward()
            if cured:
                clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            if not cured:
                clip_grad_norm_(model.parameters(), 0.1)

        return step

    return classifying(d, change)


def eval_in_the_step(d, cured):
    net = nn.Sequential(d.net(d.width), nn.BatchNorm1d(d.width), nn.Linear(d.width, d.classes))

    def change(criterion):
        def step(model, optimizer, batch):
            model.train(cured)
            plain(criterion)(model, optimizer, batch)

        return step

    return classifying(d, change, net=net)


def step_fails(d, cured):
    def change(criterion):
        def step(model, optimizer, batch):
            if not cured:
                _, _, _ = batch  # a weight that is not there
            plain(criterion)(model, optimizer, batch)

        return step

    return classifying(d, change)


def zeroed_in_part(d, cured):
    def change(criterion):
        def step(model, optimizer, batch):
            (model if cured else model[0]).zero_grad()
            criterion(model(batch[0]), batch[1]).backward()
            optimizer.step()

        return step

    return classifying(d, change)


# name of the case -> the cause that must come first
SICK = {
    missing_zero_grad: "missing_zero_grad",
    missing_division: "missing_division",
    only_last_part: "only_last_part",
    gradient_zeroed: "gradient_zeroed",
    no_step: "no_step",
    gradient_scale_left: "gradient_scale_left",
    clipped_before_unscaling: "clipped_before_unscaling",
    clips_always: "clips_always",
    uphill_step: "ascent",
    step_differs: "step_differs",
    moved_otherwise: "moved_otherwise",
    clips_by_value: "clips_by_value",
    clips_never: "clips_never",
    scaled_by_hand: "gradient_scale_left",
    clips_after_the_step: "clips_never",
    eval_in_the_step: "eval_mode",
    step_fails: "step_fails",
    zeroed_in_part: "missing_zero_grad",
    never_by_value: "clips_never",
    chain_never_clips: "clips_never",
    chain_always_clips: "clips_always",
}
