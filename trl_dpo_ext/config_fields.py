"""Hyperparameters of the built-in loss variants as fields. Written by `make docs`; do not edit."""

from __future__ import annotations

from dataclasses import dataclass

from .option_docs import document_options


@document_options
@dataclass(kw_only=True)
class LossHyperparameters:
    """Options of `DPOExtConfig`: the hyperparameters of the built-in loss variants.

    The default None means "not set": the variant uses its published default. Setting a hyperparameter that none of the
    chosen losses takes is an error.

    Args:
        > Hyperparameters of `alpha_dpo`

        alpha_dpo_beta: Scale of the mean log-prob per token; far larger than DPO's beta. (default: 2.5; > 0)
        alpha_dpo_gamma_ratio: Mean target margin as a fraction of alpha_dpo_beta. (default: 0.6)
        alpha_dpo_alpha: How strongly a pair's target margin follows its gap to the reference; 0 is SimPO. (default:
            0.2; >= 0)

        > Hyperparameters of `alphapo`

        alphapo_beta: Scale of the reward; far larger than DPO's beta. (default: 2.5; > 0)
        alphapo_alpha: Shape of the reward: 0 is SimPO's logarithm, -1 the probability. (default: 0.25)
        alphapo_gamma: Target reward margin. (default: 0.1)

        > Hyperparameters of `amapo`

        amapo_beta: Scale of the mean log-prob per token; far larger than DPO's beta. (default: 2.0; > 0)
        amapo_label_smoothing: Probability that a preference label is flipped. (default: 0.0; >= 0; < 0.5)

        > Hyperparameters of `anc_dpo`

        anc_dpo_delta: Target reward of the anchor on the chosen side. (default: 0.0)

        > Hyperparameters of `aot`, `aot_unpaired`

        aot_global: Sort the pairs of all processes together instead of each process's own. (default: False)

        > Hyperparameters of `arpo`

        arpo_alpha: Weight of the likelihood term. (default: 1.0; >= 0)
        arpo_detach: Detach the weight of the rejected side. (default: False)
        arpo_eta1: Weight of the rejected side plus 1 where both sides are equally likely per token. (default: 0.9; >=
            0)
        arpo_eta2: Growth rate of the rejected side's weight with the distance between both sides. (default: 0.4; >= 0)

        > Hyperparameters of `bdpo`

        bdpo_lambda: Weight of the policy in the mixture that scores the rejected side; 1 is DPO. (default: 0.5; > 0; <=
            1)

        > Hyperparameters of `beta_dpo`

        beta_dpo_alpha: How strongly beta follows the batch's mean margin; 0 keeps it fixed. (default: 0.6; >= 0)
        beta_dpo_rho: Fraction of the batch left out as outliers. (default: 0.2; >= 0; < 1)

        > Hyperparameters of `bpo`

        bpo_alpha: Weight of the rejected side relative to the chosen one. (default: 0.3; > 0)
        bpo_link: Link function applied to the margin. (default: hinge; one of hinge, logistic)

        > Hyperparameters of `cal_dpo`

        cal_dpo_beta: Cal-DPO's beta: each side is calibrated to the log-ratio 1 / (2 beta). (default: 0.002; > 0)

        > Hyperparameters of `chipo`

        chipo_clip: Maximum reward R; the scaled margin is clipped to +-2 R. Off by default. (default: None; > 0)

        > Hyperparameters of `confpo`

        confpo_beta: Scale of the mean log-prob per unsure token. (default: 1.5; > 0)
        confpo_gamma: Target reward margin. (default: 1.6; >= 0)

        > Hyperparameters of `cpo`

        cpo_alpha: Weight of the likelihood term. (default: 1.0; >= 0)

        > Hyperparameters of `d2po`

        d2po_gamma: Discount factor per token; 1 is DPO. (default: 0.98; > 0; <= 1)

        > Hyperparameters of `dpo_nll`

        dpo_nll_weight: Weight of the likelihood term. (default: 1.0; >= 0)
        dpo_nll_norm: Normalization of the likelihood: per token of each answer, per answer, or per token of the
            micro-batch. (default: seq_mean; one of seq_mean, seq_sum, token_mean)

        > Hyperparameters of `dpo_shift`

        dpo_shift_lambda: Weight of the rejected side; 1 is DPO. (default: 0.75; > 0; <= 1)
        dpo_shift_schedule: Schedule of the rejected side's weight: fixed, or linear between min and max. (default:
            fixed; one of fixed, increase_linear, decrease_linear)
        dpo_shift_min: Lowest weight of the rejected side in a schedule. (default: 0.75; > 0; <= 1)
        dpo_shift_max: Highest weight of the rejected side in a schedule. (default: 0.95; > 0; <= 1)

        > Hyperparameters of `dpop`

        dpop_lambda: Weight of the penalty when the chosen side becomes less likely than under the reference. (default:
            50.0; >= 0)

        > Hyperparameters of `dr_dpo`

        dr_dpo_beta: Temperature of the weights; low values favor easy pairs, high values weight all pairs equally.
            (default: 1.0; > 0)

        > Hyperparameters of `focalpo`

        focalpo_gamma: Exponent of the weight q^gamma; 0 is DPO. (default: 0.05; >= 0)

        > Hyperparameters of `gamma_po`

        gamma_po_beta: Scale of the mean log-prob per token; far larger than DPO's beta. (default: 10.0; > 0)
        gamma_po_ratio: Mean target margin as a fraction of gamma_po_beta. (default: 0.4; >= 0)
        gamma_po_tau: Strength of the pull towards equal target margins; high is SimPO. (default: 10.0; > 0)

        > Hyperparameters of `hdpo`

        hdpo_alpha: Weight of the policy's log-probs; below 1 sharpens the policy, 1 is DPO. (default: 0.95; > 0)

        > Hyperparameters of `infonca`

        infonca_tau: Temperature of the target distribution, in units of the scores. (required; > 0)

        > Hyperparameters of `kldpo`

        kldpo_tau: Temperature of the weights; low values favor the hardest pairs. (default: 0.05; > 0)

        > Hyperparameters of `lipo`, `lipo_normalized`

        lipo_scale: Highest score: scores are divided by it, to be labels from 0 to 1. (required; > 0)

        > Hyperparameters of `mallows_dpo`

        mallows_dpo_mean: Scale of the dispersion -log(entropy); 1 / its mean on your data keeps beta on DPO's scale.
            (default: 0.29; > 0)

        > Hyperparameters of `margin`

        margin_scale: Scale of the margin column, in nats per unit. (default: 1.0)

        > Hyperparameters of `nca`

        nca_tau: Temperature of the target distribution, in units of the scores. (required; > 0)

        > Hyperparameters of `odpo`

        odpo_alpha: Weight of the offset. (default: 1.0; >= 0)
        odpo_transform: Transform from the score gap to the offset. (default: log; one of log, identity)

        > Hyperparameters of `orpo`

        orpo_lambda: Weight of the odds-ratio term relative to the likelihood. (default: 0.1; > 0)

        > Hyperparameters of `pl`, `pl_reference_free`

        pl_reduction: Sum or mean over the answers that others are ranked below; the sum grows with their number.
            (default: sum; one of sum, mean)

        > Hyperparameters of `pl_reference_free`

        pl_reference_free_beta: Scale of the mean log-prob per token; far larger than DPO's beta. (default: 2.0; > 0)

        > Hyperparameters of `qrpo`, `qrpo_list`

        qrpo_beta: QRPO's beta; far smaller than DPO's. (default: 0.003; > 0)
        qrpo_transform: Transform from the quantile to the reward. (default: identity; one of identity, log)
        qrpo_error: Squared or absolute error. (default: mse; one of mse, mae)

        > Hyperparameters of `qrpo_list`

        qrpo_list_scores: What the scores are: quantiles, as `qrpo` reads them, or scores of answers that the reference
            model sampled, which give the quantiles. (default: quantiles; one of quantiles, samples)

        > Hyperparameters of `rainbowpo`

        rainbowpo_beta: Scale of the mean log-prob per token; far larger than DPO's beta. (default: 10.0; > 0)
        rainbowpo_alpha: Weight of the reference in the margin; 0 is SimPO. (default: 0.25; >= 0; <= 1)
        rainbowpo_home: Target margin per token, weighted by 1 - alpha. (default: 0.1; >= 0)
        rainbowpo_mean: Scale of the dispersion -log(entropy) of the reference. (default: 0.29; > 0)

        > Hyperparameters of `rdpo`

        rdpo_alpha: Length penalty, in nats of reward per extra token. (default: 0.01; >= 0)

        > Hyperparameters of `repo`

        repo_gamma: Target margin, in nats per token. (default: 0.6)

        > Hyperparameters of `ropo`

        ropo_alpha: Weight of the bounded, noise-tolerant term relative to DPO's. (default: 14.0; > 0)

        > Hyperparameters of `rpo_bwd`, `rpo_fwd`, `rpo_sq`

        rpo_eta: Scale of the score gap, in nats per point. (default: 1.0; > 0)

        > Hyperparameters of `rrhf`

        rrhf_nll_weight: Weight of the likelihood of the best answer. (default: 1.0; >= 0)
        rrhf_reduction: Sum or mean over the ordered pairs of a prompt. (default: sum; one of sum, mean)

        > Hyperparameters of `simpo`

        simpo_beta: Scale of the mean log-prob per token; far larger than DPO's beta. (default: 2.0; > 0)
        simpo_gamma: Target reward margin; 0.5 if unset. (default: None)
        simpo_gamma_beta_ratio: Target reward margin as a fraction of simpo_beta. (default: None)
        simpo_label_smoothing: Probability that a preference label is flipped. (default: 0.0; >= 0; < 0.5)
        simpo_link: Link function applied to the margin. (default: sigmoid; one of sigmoid, hinge)

        > Hyperparameters of `slic_hf`

        slic_hf_delta: Target log-prob margin, in nats. (default: 1.0; > 0)
        slic_hf_lambda: Weight of the likelihood term. (default: 0.1; >= 0)

        > Hyperparameters of `soft_dpo`

        soft_dpo_eta: Scale from the score gap to the log-odds that the label is correct. (default: 1.0; > 0)

        > Hyperparameters of `sppo`, `sppo_list`

        sppo_beta: SPPO's beta: a certain pair is regressed to the log-ratio 1 / (2 beta). (default: 0.001; > 0)

        > Hyperparameters of `sppo_list`

        sppo_eta: Scale from a score gap to the log-odds of winning. (default: 1.0; > 0)
        sppo_list_scores: What the scores are: scores, which give win rates against the other answers, or the win rates
            themselves. (default: scores; one of scores, win_rates)

        > Hyperparameters of `sympo`

        sympo_link: Link function applied to the difference of the rewards. (default: sigmoid; one of sigmoid, ramp)
        sympo_clip: Each side's reward is clipped to +- this; 0 switches the clip off. (default: 10.0; >= 0)

        > Hyperparameters of `tdpo2`

        tdpo2_alpha: Weight of the token-level KL term; 0 is DPO. (default: 0.5; >= 0)

        > Hyperparameters of `uni_dpo`

        uni_dpo_beta: Scale of the gap per token; larger than DPO's beta. (default: 2.0; > 0)
        uni_dpo_eta: Scale of the score gap in the quality weight. (default: 0.7; >= 0)
        uni_dpo_tau_ref: Policy's scaled gap at which the performance weight is (1/2)^gamma. (default: 0.8; >= 0)
        uni_dpo_gamma: Exponent of the performance weight; 0 switches it off. (default: 3.0; >= 0)
        uni_dpo_lambda: Weight of the likelihood of good chosen answers. (default: 0.001; >= 0)
        uni_dpo_tau_good: Score from which a chosen answer is good, in units of the scores. (default: 3.2)

        > Hyperparameters of `unlikelihood`

        unlikelihood_alpha: Weight of the rejected side. (default: 1.0; >= 0; <= 1)
    """

    alpha_dpo_beta: float | None = None
    alpha_dpo_gamma_ratio: float | None = None
    alpha_dpo_alpha: float | None = None
    alphapo_beta: float | None = None
    alphapo_alpha: float | None = None
    alphapo_gamma: float | None = None
    amapo_beta: float | None = None
    amapo_label_smoothing: float | None = None
    anc_dpo_delta: float | None = None
    aot_global: bool | None = None
    arpo_alpha: float | None = None
    arpo_detach: bool | None = None
    arpo_eta1: float | None = None
    arpo_eta2: float | None = None
    bdpo_lambda: float | None = None
    beta_dpo_alpha: float | None = None
    beta_dpo_rho: float | None = None
    bpo_alpha: float | None = None
    bpo_link: str | None = None
    cal_dpo_beta: float | None = None
    chipo_clip: float | None = None
    confpo_beta: float | None = None
    confpo_gamma: float | None = None
    cpo_alpha: float | None = None
    d2po_gamma: float | None = None
    dpo_nll_weight: float | None = None
    dpo_nll_norm: str | None = None
    dpo_shift_lambda: float | None = None
    dpo_shift_schedule: str | None = None
    dpo_shift_min: float | None = None
    dpo_shift_max: float | None = None
    dpop_lambda: float | None = None
    dr_dpo_beta: float | None = None
    focalpo_gamma: float | None = None
    gamma_po_beta: float | None = None
    gamma_po_ratio: float | None = None
    gamma_po_tau: float | None = None
    hdpo_alpha: float | None = None
    infonca_tau: float | None = None
    kldpo_tau: float | None = None
    lipo_scale: float | None = None
    mallows_dpo_mean: float | None = None
    margin_scale: float | None = None
    nca_tau: float | None = None
    odpo_alpha: float | None = None
    odpo_transform: str | None = None
    orpo_lambda: float | None = None
    pl_reduction: str | None = None
    pl_reference_free_beta: float | None = None
    qrpo_beta: float | None = None
    qrpo_transform: str | None = None
    qrpo_error: str | None = None
    qrpo_list_scores: str | None = None
    rainbowpo_beta: float | None = None
    rainbowpo_alpha: float | None = None
    rainbowpo_home: float | None = None
    rainbowpo_mean: float | None = None
    rdpo_alpha: float | None = None
    repo_gamma: float | None = None
    ropo_alpha: float | None = None
    rpo_eta: float | None = None
    rrhf_nll_weight: float | None = None
    rrhf_reduction: str | None = None
    simpo_beta: float | None = None
    simpo_gamma: float | None = None
    simpo_gamma_beta_ratio: float | None = None
    simpo_label_smoothing: float | None = None
    simpo_link: str | None = None
    slic_hf_delta: float | None = None
    slic_hf_lambda: float | None = None
    soft_dpo_eta: float | None = None
    sppo_beta: float | None = None
    sppo_eta: float | None = None
    sppo_list_scores: str | None = None
    sympo_link: str | None = None
    sympo_clip: float | None = None
    tdpo2_alpha: float | None = None
    uni_dpo_beta: float | None = None
    uni_dpo_eta: float | None = None
    uni_dpo_tau_ref: float | None = None
    uni_dpo_gamma: float | None = None
    uni_dpo_lambda: float | None = None
    uni_dpo_tau_good: float | None = None
    unlikelihood_alpha: float | None = None
