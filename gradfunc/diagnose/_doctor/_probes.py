"""The list of probes; upstream first: of findings as bad and as sure, the earlier one leads."""

from __future__ import annotations

from . import _batch, _clips, _data, _flow, _loss, _missing, _numerics, _raised, _rate, _step
from ._finding import Probe

PROBES: tuple[Probe, ...] = (
    Probe("finite data", ("nonfinite_data",), _data.finite),
    Probe("class indices", ("index_out_of_range", "class_dimension"), _loss.indices),
    Probe("range of targets", ("target_out_of_range", "bce_on_logits"), _loss.beyond),
    Probe("forward and backward pass", ("loss_fails", "index_out_of_range"), _raised.runs),
    Probe("shapes", ("broadcast_target",), _loss.broadcast),
    Probe("classes as numbers", ("classes_under_regression",), _loss.classes_as_numbers),
    Probe(
        "logits and probabilities",
        (
            "one_class",
            "softmax_before_cross_entropy",
            "relu_on_logits",
            "nll_on_logits",
            "nll_on_probabilities",
            "sigmoid_before_logits_loss",
        ),
        _loss.outputs,
    ),
    Probe("reach of the output", ("target_out_of_reach", "mse_on_sigmoid"), _loss.reach),
    Probe("gradients reach parameters", ("gradient_cut", "unused_parameter"), _missing.reached),
    Probe(
        "parameters of the optimiser", ("other_parameters", "parameters_left_out", "frozen_in_optimizer"), _missing.held
    ),
    Probe(
        "your step",
        (
            "step_fails",
            "missing_zero_grad",
            "missing_division",
            "only_last_part",
            "gradient_scale_left",
            "clipped_before_unscaling",
            "gradient_zeroed",
            "no_step",
            "step_differs",
            "moved_otherwise",
            "ascent",
            "clips_by_value",
            "clips_always",
            "clips_never",
        ),
        _step.step,
    ),
    Probe("clips of the chain", ("clips_never", "clips_always"), _clips.said),
    Probe("sum or mean", ("sum_reduction",), _loss.summed),
    Probe("distinct inputs", ("identical_inputs", "constant_features"), _data.constants),
    Probe("copies", ("contradicting_labels", "duplicates"), _data.copies),
    Probe("scales of features", ("unscaled_features", "unscaled_inputs"), _data.scales),
    Probe("scale of the target", ("unscaled_target",), _loss.size_of_target),
    Probe("finite numbers", ("nonfinite",), _numerics.finite),
    Probe("precision", ("precision",), _numerics.precision),
    Probe("equal units", ("zero_init", "symmetric_init"), _flow.same_units),
    Probe("coupling of samples", ("batch_coupling", "small_batch_norm"), _batch.coupling),
    Probe("backward passes", ("wrong_backward",), _numerics.backward, "deep", _numerics.custom),
    Probe("rounding of updates", ("update_lost",), _numerics.lost),
    Probe("weight decay", ("decay_overpowers",), _rate.decay),
    Probe("rate", ("rate_zero", "ascent", "rate_too_small"), _rate.moves),
    Probe("rate against curvature", ("rate_too_large", "rate_too_small"), _rate.curvature, "deep", _rate.grows),
    Probe("gradient flow", ("dead_units", "exploding", "vanishing", "saturated"), _flow.flow),
    Probe("modes", ("eval_mode",), _batch.modes),
    Probe("repeated passes", ("nondeterministic",), _numerics.repeats),
    Probe("classes", ("class_imbalance",), _data.imbalance),
    Probe("labels belong to inputs", ("labels_shifted", "labels_unrelated"), _data.labels),
    Probe("best constant", ("worse_than_constant", "constant_output"), _loss.floor),
    Probe("noise of the batch", ("noisy_batch",), _batch.noise, "deep", _batch.noisy),
    Probe("reductions", ("reductions_disagree",), _batch.reductions, "deep", _batch.disagree),
)
"""What `doctor` asks, in order; give it others with `probes=`."""
